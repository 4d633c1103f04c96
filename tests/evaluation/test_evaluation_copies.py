"""The longest copy, held to a search of every substring, and fast enough for a large corpus."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.evaluation import copies
from lightwell.evaluation.copies import longest_copy


def twin(sample: str, corpus: bytes) -> int:
    parts = (sample[i:j] for i in range(len(sample)) for j in range(i, len(sample) + 1))
    return max((len(part) for part in parts if part.encode() in corpus), default=0)


few = st.text("abé☃", max_size=14)


@settings(deadline=None)
@given(few, few)
def test_the_length_is_that_of_the_longest_substring_there_is(sample: str, corpus: str) -> None:
    found = longest_copy(sample, corpus.encode())
    assert found.length == twin(sample, corpus.encode())
    if found.length:
        copied = corpus.encode()[found.where :].decode()[: found.length]
        assert copied in sample
    else:
        assert found.where == -1


@settings(deadline=None)
@given(few, st.binary(max_size=20))
def test_any_bytes_can_be_a_corpus(sample: str, corpus: bytes) -> None:
    assert longest_copy(sample, corpus).length == twin(sample, corpus)


def test_copies_over_the_border_of_a_chunk_are_found(monkeypatch) -> None:
    monkeypatch.setattr(copies, "CHUNK", 5)
    corpus = "0123456789" * 3 + "the needle" + "0123456789" * 3
    assert longest_copy("xx the needle xx", corpus.encode()) == (10, 30)


def test_equal_hashes_are_not_taken_for_copies(monkeypatch) -> None:
    """With a hash that tells nothing apart the answer is the same: characters are compared in the end."""
    monkeypatch.setattr(copies, "_hashes", lambda characters, size: characters[size - 1 :].astype("u8") * 0)
    assert longest_copy("a needle in", b"hay needles hay").length == len(" needle")


def test_a_lone_surrogate_in_the_sample_is_no_trouble() -> None:
    assert longest_copy("ab\ud800cd", b"zzabcd") == (2, 2)


def test_a_million_bytes_take_well_under_a_second_per_pass() -> None:
    corpus = b"def f(x):\n    return x\n" * 50_000 + "λ marks the end".encode()
    begin = time.perf_counter()
    assert longest_copy("nothing λ marks the end\n" * 20, corpus).length == len("λ marks the end")
    assert time.perf_counter() - begin < 5
