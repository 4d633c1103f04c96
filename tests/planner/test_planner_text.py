"""What is told of a text before training: what counting three tokens in a row knows of it."""

import math

import numpy as np
import pytest

from lightwell.data.prepare import prepare
from lightwell.planner.text import (
    NEARBY,
    PASSAGE,
    PIECE,
    describe,
    discounts,
    loss,
    ngram_chances,
    overlaps,
    typical_text,
    with_copying,
    with_repetition,
)


class Ids(np.ndarray):
    def scattered(self, n, pieces):
        return np.asarray(self[:n])


class Prepared:
    """What is looked at of a dataset, of tokens of one byte."""

    def __init__(self, train, val):
        self.train, self.val = train.view(Ids), val.view(Ids)
        self.tokenizer = self
        self.vocab_size = int(max(train.max(), val.max())) + 1

    def byte_lengths(self):
        return np.ones(self.vocab_size)


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
        taken = [taken_of[len(context)][min(count, 3)] for count in counts]
        shorter = chance(context[1:] if context else None, token)
        if not sum(counts):
            return shorter
        return (counts[token] - taken[token] + sum(taken) * shorter) / sum(counts)

    taken_of = []
    for length in range(1, order + 1):
        seen = {tuple(train[i : i + length]) for i in range(len(train) - length + 1)}
        seen = [n for n in (occurrences(list(gram)) for gram in seen) if n]
        taken_of.append(discounts(np.array(seen)))
    nats = [-math.log(chance(val[i : i + order - 1], val[i + order - 1])) for i in range(len(val) - order + 1)]
    return sum(nats) / len(nats)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("V", [2, 5, 12])
def test_sequences_are_those_counted_by_hand(order, V):
    random = np.random.default_rng(1)
    train, val = (random.integers(V, size=n).tolist() for n in (60, 20))
    found = loss(ngram_chances(np.array(train), np.array(val), V, order))
    assert found == pytest.approx(by_hand(train, val, V, order))


def test_what_is_taken_from_counts():
    """Four sequences seen once, three twice, two three times, one four times: Y = 4 / (4 + 2 * 3)."""
    taken = discounts(np.array([1] * 4 + [2] * 3 + [3] * 2 + [4]))
    assert taken.tolist() == pytest.approx([0, 1 - 2 * 0.4 * 3 / 4, 2 - 3 * 0.4 * 2 / 3, 3 - 4 * 0.4 * 1 / 2])
    never_twice = discounts(np.array([1, 1, 1, 1]))
    assert 0.5 < never_twice[1] < 1, "it says little, but something is left"
    assert (discounts(np.array([9, 9]))[1:] > 0).all()


def test_sequences_know_what_always_follows():
    pattern = np.tile(np.arange(10), 100)
    assert loss(ngram_chances(pattern, pattern[:50], 10)) < 0.1
    noise = np.random.default_rng(2).integers(10, size=20_000)
    assert loss(ngram_chances(noise, noise[::-1], 10)) == pytest.approx(math.log(10), rel=0.05)
    assert math.isfinite(loss(ngram_chances(np.array([1, 2]), np.array([2]), 10)))


def test_copying_pays_where_something_is_repeated_nearby_and_never_costs():
    random = np.random.default_rng(4)
    once, other = random.integers(10**6, size=(10, 450)), random.integers(10**6, size=(10, PIECE - 900))
    twice = np.concatenate([once, once, other], axis=1).ravel()
    chances = np.full(len(twice), 1e-3)
    (mixed,) = with_copying(chances, twice, [NEARBY])
    assert mixed.shape == (10, PIECE)
    assert (mixed[:, 452:900] > 0.5).all()
    assert (mixed[:, :450] <= 1e-3).all()
    assert loss(*with_copying(np.full(5000, 1e-3), random.integers(10**9, size=5000), [NEARBY])) == pytest.approx(
        math.log(1e3)
    )
    assert with_copying(np.array([0.5]), np.array([3]), [2, 7]) == [[[0.5]], [[0.5]]]


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
    assert easy.vocabulary > hard.vocabulary, "digits are in use too"
    assert 10 < hard.vocabulary < 27
    assert 0 < easy.copying < hard.copying <= 1


def test_far_and_near_copies_and_phrases_are_told_apart():
    """What comes again after 200 tokens can only be copied from far off, after 20 also from near; words of three tokens
    are known by the third."""
    random = np.random.default_rng(8)
    fresh = random.integers(300, size=40_000)

    def again(period: int) -> np.ndarray:
        blocks = random.integers(300, size=(100, 1, period))
        return np.repeat(blocks, 2, axis=1).ravel()

    near, far, new = (describe(Prepared(fresh, val)) for val in (again(20), again(200), fresh[:8000]))
    assert far.copying < 0.9
    assert far.far < 0.9
    assert near.far > 0.97
    assert far.farther > 0.97
    assert describe(Prepared(fresh, again(400))).farther < 0.9
    words = np.array([0, *random.permutation(299)])  # the next token is told by the two before it, not by one alone
    pairs = random.integers(17, size=(20_000, 2))
    spelled = np.concatenate([pairs, words[pairs[:, :1] * 17 + pairs[:, 1:]]], axis=1).ravel()
    assert describe(Prepared(spelled, spelled[:9000])).phrases > 1.2
    assert describe(Prepared(fresh, random.integers(300, size=9000))).phrases < 1.05
    assert new.guessing == pytest.approx(math.log2(300))


def test_passages_that_stand_in_both_are_found_where_they_are():
    random = np.random.default_rng(6)
    train, val = random.integers(1000, size=5000), random.integers(1000, size=400)
    assert overlaps(train, val)[0] == 0
    val[100:200] = train[300:400]
    train[2000:2050] = train[4000:4050] = val[10:60]
    train[3000 : 3000 + PASSAGE - 1] = val[300 : 300 + PASSAGE - 1]  # too short to count
    share, once = overlaps(train, val)
    assert share == (100 + 50) / 400
    assert np.flatnonzero(once).tolist() == list(range(300, 400)), "what stands there twice is learned"
    assert overlaps(val, val) == (1.0, pytest.approx(np.ones(400, bool)))
    assert overlaps(train[:5], val)[0] == overlaps(train, val[:5])[0] == 0


def test_what_was_read_once_is_known_by_half():
    random = np.random.default_rng(7)
    once, twice, thrice, new = random.integers(500, size=(4, 5000))
    train = np.concatenate([once, twice, twice, thrice, thrice, thrice])
    told = {name: describe(Prepared(train, val)) for name, val in (("new", new), ("known", once))}
    assert told["new"].overlap == 0
    assert told["known"].overlap == 1
    counted = loss(ngram_chances(train, once, 500)) / math.log(2)
    assert counted < 0.6 * told["new"].difficulty
    assert told["known"].difficulty == pytest.approx((counted + told["new"].difficulty) / 2, rel=0.02)
    assert math.isfinite(describe(Prepared(new, new)).difficulty), "nothing is left to count"


def test_copying_compares_the_same_tokens(tmp_path):
    random = np.random.default_rng(5)
    easy, hard = "a" * 246, bytes(random.integers(33, 127, size=246).tolist()).decode()
    (tmp_path / "text.txt").write_text("aaaa aaaa\n" * 500)
    for name, val in (("hard_end", easy + hard), ("easy_end", hard + easy), ("easy", "a" * 2000)):
        (tmp_path / f"{name}.txt").write_text(val)
        made = prepare([tmp_path / "text.txt"], tmp_path / name, tokenizer="bytes", val=[tmp_path / f"{name}.txt"])
        assert 0 < describe(made).copying <= 1


def test_a_short_text_is_harder_to_count():
    short, long = typical_text(50_000), typical_text(10**9)
    assert short.tokens == 50_000
    assert short.difficulty > typical_text(10**6).difficulty > long.difficulty


def test_what_stands_often_is_known_by_the_tokens_before_it(monkeypatch):
    rng = np.random.default_rng(0)
    header, pages = rng.integers(0, 9, 40), [rng.integers(0, 9, 60) for _ in range(30)]
    train, val = (
        np.concatenate([part for page in some for part in (header, page)]) for some in (pages[:20], pages[20:])
    )
    chances = ngram_chances(train, val, 9)
    assert loss(with_repetition(chances, train, val)) < 0.9 * loss(chances)
    other = rng.integers(9, 18, 500)
    assert np.array_equal(with_repetition(chances, other, val), chances)
    assert np.array_equal(with_repetition(chances[:1], train[:3], val[:3]), chances[:1])  # too short to look

    monkeypatch.setattr("lightwell.planner.text.LONGER", (5,))
    places = [
        [at for at in range(5, len(train)) if (train[at - 5 : at] == val[n - 5 : n]).all()] for n in range(5, len(val))
    ]
    often = np.array([len(found) >= 4 for found in places])
    shares = np.array([np.mean(train[found] == val[n]) for n, found in enumerate(places, 5) if len(found) >= 4])
    expected, known = chances.copy(), chances[3:][often]
    expected[3:][often] = min((known + w * (shares - known) for w in np.arange(0, 1, 0.05)), key=loss)
    assert with_repetition(chances, train, val) == pytest.approx(expected)
