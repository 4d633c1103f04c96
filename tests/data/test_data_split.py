"""The held-out part: how text is cut, what is chosen, and that neither depends on anything but the text."""

from itertools import pairwise

import pytest
from data_texts import prose
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.data.split import LARGEST, MOST, SMALLEST, STRETCH, Passage, choose_held_out, passages
from lightwell.errors import DataError


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["word ", "é", "\n", "\n\n", "\n \n", "🍎", "x" * 300, "x" * 9000]), max_size=300),
    st.integers(1, 30),
)
def test_passages_are_the_document_in_pieces(pieces, times):
    text = ("".join(pieces) * times).encode()
    cut = passages(text)
    assert cut[0].start == 0
    assert cut[-1].end == len(text)
    for left, right in pairwise(cut):
        assert left.end == right.start
    for passage in cut:
        text[passage.start : passage.end].decode()  # no character is cut
        assert passage.n_bytes <= LARGEST + SMALLEST + 9000
        assert passage.n_bytes >= SMALLEST or len(cut) == 1


def test_passages_end_at_paragraphs():
    text = prose(500_000)
    cut = passages(text)
    assert len(cut) > 20
    assert all(text[passage.start - 2 : passage.start] == b"\n\n" for passage in cut[1:])


def test_text_without_blank_lines_is_cut_at_lines():
    text = prose(300_000, paragraph="\n")
    assert all(text[passage.start - 1 : passage.start] == b"\n" for passage in passages(text)[1:])


def test_blanks_are_cut_too():
    text = b"words\n" + b"\n" * 200_000 + prose(30_000) + b" " * 200_000
    cut = passages(text)
    assert max(passage.n_bytes for passage in cut) <= LARGEST + SMALLEST
    assert sum(passage.n_bytes for passage in cut) == len(text)


def test_cuts_find_each_other_again_after_an_insertion():
    text = prose(400_000)
    before = {passage.digest for passage in passages(text)}
    after = {passage.digest for passage in passages(b"A new paragraph.\n\n" + text)}
    assert len(before & after) > 0.8 * len(before)


def test_one_novel():
    text = prose(400_000)
    cut = passages(text)
    held = choose_held_out([cut])
    size = sum(passage.n_bytes for passage in cut if passage.digest in held)
    assert STRETCH <= size <= STRETCH + LARGEST + SMALLEST
    assert len(held) >= 3  # places all over the novel


def test_the_least_text_leaves_enough_for_both():
    cut = passages(prose(2 * STRETCH))
    held = choose_held_out([cut])
    sizes = [sum(p.n_bytes for p in cut if (p.digest in held) is side) for side in (True, False)]
    assert min(sizes) >= 30_000


@pytest.mark.parametrize("size", [0, 1, 20_000, 120_000])
def test_too_little_text(size):
    with pytest.raises(DataError, match=rf"expected at least 128 kB .* got {size:,} different bytes") as error:
        choose_held_out([passages(prose(size)[:size])])
    assert "--val" in error.value.hint


def test_the_same_text_twice_counts_once():
    cut = passages(prose(100_000))
    with pytest.raises(DataError):
        choose_held_out([cut, cut])


def test_share_and_limits():
    documents = [[passage] for passage in passages(prose(20_000_000))]
    sizes = {document[0].digest: document[0].n_bytes for document in documents}
    held = sum(sizes[digest] for digest in choose_held_out(documents))
    assert 200_000 <= held <= 200_000 + LARGEST + SMALLEST
    huge = [[Passage(0, 20_000, number.to_bytes(16, "big"))] for number in range(200_000)]  # 4 GB
    held = sum(20_000 for _ in choose_held_out(huge))
    assert MOST - 100_000 < held <= MOST


def test_the_choice_does_not_depend_on_order_and_hardly_on_additions():
    documents = [passages(prose(5_000, seed)) for seed in range(100)]
    held = choose_held_out(documents)
    assert choose_held_out(documents[::-1]) == held
    more = choose_held_out([*documents, *(passages(prose(5_000, seed)) for seed in range(100, 110))])
    assert len(held & more) > 0.7 * len(held)
