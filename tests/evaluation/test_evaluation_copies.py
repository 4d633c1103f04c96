"""The longest copy, held to a search of every substring."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.evaluation import copies
from lightwell.evaluation.copies import longest_copy


def twin(sample: str, corpus: str) -> int:
    parts = (sample[i:j] for i in range(len(sample)) for j in range(i, len(sample) + 1))
    return max((len(part) for part in parts if part in corpus), default=0)


few = st.text("abé☃", max_size=14)


@settings(deadline=None)
@given(few, few)
def test_it_is_as_long_as_the_longest_substring_there_is(sample: str, corpus: str) -> None:
    found = longest_copy(sample, corpus)
    assert len(found.text) == twin(sample, corpus)
    assert found.text in sample
    assert corpus.startswith(found.text, found.where) if found.text else found.where == -1


def test_copies_over_the_border_of_a_chunk_are_found(monkeypatch) -> None:
    monkeypatch.setattr(copies, "CHUNK", 5)
    corpus = "0123456789" * 3 + "the needle" + "0123456789" * 3
    assert longest_copy("xx the needle xx", corpus) == ("the needle", 30)


def test_equal_hashes_are_not_taken_for_copies(monkeypatch) -> None:
    """With a hash that tells nothing apart the answer is the same: characters are compared in the end."""
    monkeypatch.setattr(copies, "window_hashes", lambda characters, size: characters[size - 1 :].astype("u8") * 0)
    assert longest_copy("a needle in", "hay needles hay").text == " needle"


def test_a_lone_surrogate_in_the_sample_is_no_trouble() -> None:
    assert longest_copy("ab\ud800cd", "zzabcd") == ("ab", 2)


def test_a_million_characters() -> None:
    corpus = "def f(x):\n    return x\n" * 50_000 + "λ marks the end"
    assert longest_copy("nothing λ marks the end\n" * 20, corpus).text == "λ marks the end"
