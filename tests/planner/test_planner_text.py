"""What is told of a text before training: how repetitive it is, and what pairs of tokens know of it."""

import math

import numpy as np
import pytest

from lightwell.data.prepare import prepare
from lightwell.planner.text import DISCOUNT, describe, difficulty, ngram_nats


def test_difficulty_tells_noise_from_repetition():
    noise = np.random.default_rng(0).integers(256, size=50_000, dtype=np.uint8).tobytes()
    assert difficulty(noise) > 7.9
    assert difficulty(b"the same line again\n" * 2500) < 0.2


def by_hand(train, val, V, order):
    """The same, in loops: the chance of each token of `val` after the ones before it."""

    def occurrences(gram):  # all of the longest, of shorter ones the different tokens that come before
        places = [i for i in range(len(train) - len(gram) + 1) if train[i : i + len(gram)] == gram]
        if len(gram) == order:
            return len(places)
        return len({tuple(train[i - 1 : i + len(gram)]) for i in places if i >= order - len(gram)})

    def chance(context, token):
        if context is None:
            return 1 / V
        counts = [occurrences([*context, t]) for t in range(V)]
        shorter = chance(context[1:] if context else None, token)
        if not sum(counts):
            return shorter
        given_on = DISCOUNT * sum(c > 0 for c in counts) / sum(counts)
        return max(counts[token] - DISCOUNT, 0) / sum(counts) + given_on * shorter

    nats = [-math.log(chance(val[i : i + order - 1], val[i + order - 1])) for i in range(len(val) - order + 1)]
    return sum(nats) / len(nats)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("V", [2, 5, 12])
def test_sequences_are_those_counted_by_hand(order, V):
    random = np.random.default_rng(1)
    train, val = (random.integers(V, size=n).tolist() for n in (60, 20))
    found = ngram_nats(np.array(train), np.array(val), V, order)
    assert found == pytest.approx(by_hand(train, val, V, order))


def test_sequences_know_what_always_follows():
    pattern = np.tile(np.arange(10), 100)
    assert ngram_nats(pattern, pattern[:50], 10) < 0.1
    noise = np.random.default_rng(2).integers(10, size=20_000)
    assert ngram_nats(noise, noise[::-1], 10) == pytest.approx(math.log(10), rel=0.05)
    assert math.isfinite(ngram_nats(np.array([1, 2]), np.array([2]), 10))


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
