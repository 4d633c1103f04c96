"""What is told of a text before training: how repetitive it is, and what pairs of tokens know of it."""

import math
from itertools import pairwise

import numpy as np
import pytest

from lightwell.data.prepare import prepare
from lightwell.planner.text import DISCOUNT, bigram_nats, describe, difficulty


def test_difficulty_tells_noise_from_repetition():
    noise = np.random.default_rng(0).integers(256, size=50_000, dtype=np.uint8).tobytes()
    assert difficulty(noise) > 7.9
    assert difficulty(b"the same line again\n" * 2500) < 0.2


def by_hand(train, val, V):
    """The same, in loops."""
    alone = [(train.count(t) + 0.5) / (len(train) + 0.5 * V) for t in range(V)]
    nats = 0.0
    for before, token in pairwise(val):
        follows = [b for a, b in pairwise(train) if a == before]
        if not follows:
            nats -= math.log(alone[token])
            continue
        kept = max(follows.count(token) - DISCOUNT, 0) / len(follows)
        given_on = DISCOUNT * len(set(follows)) / len(follows)
        nats -= math.log(kept + given_on * alone[token])
    return nats / (len(val) - 1)


def test_bigrams_are_those_counted_by_hand():
    random = np.random.default_rng(1)
    for V in (2, 5, 40):
        train, val = (random.integers(V, size=n).tolist() for n in (60, 50))
        assert bigram_nats(np.array(train), np.array(val), V) == pytest.approx(by_hand(train, val, V))


def test_bigrams_know_what_always_follows():
    pattern = np.tile(np.arange(10), 100)
    assert bigram_nats(pattern, pattern[:50], 10) < 0.1
    noise = np.random.default_rng(2).integers(10, size=1000)
    assert bigram_nats(noise, noise[::-1], 10) == pytest.approx(math.log(10), rel=0.05)


def test_a_prepared_text_is_described(tmp_path):
    words = ["a", "light", "well", "brings", "daylight", "to", "the", "inside", "of", "a", "house"]
    random = np.random.default_rng(3)
    numbered = "\n\n".join(f"{i} {' '.join(words)}" for i in range(4000))
    (tmp_path / "easy.txt").write_text(numbered)
    (tmp_path / "hard.txt").write_text(" ".join(words[i] for i in random.integers(len(words), size=60_000)))
    easy, hard = (
        describe(prepare([tmp_path / f"{name}.txt"], tmp_path / name, tokenizer="bytes")) for name in ("easy", "hard")
    )
    assert easy.tokens > 100_000
    assert easy.difficulty < hard.difficulty
    assert 0 < easy.bigram < 8
