"""What can be told of a text in a moment, before a model is trained on it: how much there is, and how hard it is.

Sequences of three tokens are counted and held to the held-out part: about what a small model knows after a minute.

    difficulty  the loss of these counts, in bits per byte, where longer sequences count that stand there often: headers
                and footers of pages, licences
    copying     the loss where what stands nearby may be copied too, over `difficulty`: attention learns to copy
    far         that loss over the one where only the last NEAR tokens may be copied: from far off is learned later
    farther     the same over the last HALFWAY tokens: what a longer context is worth
    phrases     the loss of counting two tokens in a row over that of three: what is learned phrase by phrase
    vocabulary  tokens in use: how many there would be if all were as frequent (the perplexity of their frequencies)
    overlap     the share of the held-out tokens in passages that stand in the training text too, word for word
    guessing    the loss of guessing among all tokens, in bits per byte: no model is worse
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightwell.data.dataset import Dataset
from lightwell.data.windows import window_hashes

# Of a long text only so many tokens are counted and predicted, in pieces from all over it, so that its figures can be
# compared with a shorter one's.
COUNTED, LOOKED_AT, PIECE = 1_500_000, 120_000, 1000
USUAL_VOCABULARY, USUAL_FAR, USUAL_FARTHER, USUAL_PHRASES = 512, 0.86, 0.97, 1.2  # of a text with 2048 different tokens
ORDER = 3  # tokens in a row that are counted
NEAR, HALFWAY, NEARBY = 32, 250, 500  # tokens back to copy from
LONGEST = 4  # tokens that are compared to find the place
LONGER, OFTEN = (5, 12), 4  # tokens before one, and how often they stand there, to know what follows
PASSAGE = 32  # tokens in a row that are no chance
MUCH_OVERLAP = 0.1  # from here on a held-out loss tells less about new text


@dataclass(frozen=True)
class TextStatistics:
    """`tokens` to train on; the others as above."""

    tokens: int
    difficulty: float
    copying: float
    vocabulary: float
    overlap: float = 0.0
    far: float = USUAL_FAR
    farther: float = USUAL_FARTHER
    phrases: float = USUAL_PHRASES
    guessing: float = math.inf


def typical_text(tokens: int) -> TextStatistics:
    """What to expect of prose and code before any of it was prepared; counting knows less of a short one."""
    return TextStatistics(tokens, 1.6 * (COUNTED / min(tokens, COUNTED)) ** 0.11, 0.87, USUAL_VOCABULARY)


def describe(dataset: Dataset) -> TextStatistics:
    """Look at a prepared text; a fraction of a second."""
    vocab_size, tokens = dataset.tokenizer.vocab_size, min(len(dataset.train), COUNTED)
    train = dataset.train.scattered(tokens, max(1, tokens // PIECE))
    val = dataset.val.scattered(LOOKED_AT, LOOKED_AT // PIECE)
    bytes_per_token = max(1e-9, float(dataset.tokenizer.byte_lengths()[val].mean()))
    chances = ngram_chances(train, val, vocab_size)
    near, halfway, copied = with_copying(chances, val[len(val) - len(chances) :], (NEAR, HALFWAY, NEARBY))
    pairs = ngram_chances(train, val, vocab_size, order=2)
    nats, (overlap, once) = loss(chances), overlaps(train, val)
    if overlap > MUCH_OVERLAP and not once.all():  # counting keeps all that was read once, a small model about half
        nats = (nats + loss(ngram_chances(train[~once], val, vocab_size))) / 2
    nats *= loss(with_repetition(chances, train, val)) / max(1e-9, loss(chances))
    nats_per_bit_per_byte = math.log(2) * bytes_per_token
    return TextStatistics(
        len(dataset.train),
        difficulty=max(1e-9, nats) / nats_per_bit_per_byte,
        copying=loss(copied) / max(1e-9, loss(chances[: copied.size])),
        vocabulary=math.exp(loss(ngram_chances(train, val, vocab_size, order=1))),
        overlap=overlap,
        far=loss(copied) / max(1e-9, loss(near)),
        farther=loss(copied) / max(1e-9, loss(halfway)),
        phrases=max(1e-9, loss(pairs)) / max(1e-9, loss(chances)),
        guessing=math.log(max(2, vocab_size)) / nats_per_bit_per_byte,
    )


def loss(chances: np.ndarray) -> float:
    """Nats per token, where each had these chances."""
    return float(-np.log(chances).mean())


def ngram_chances(train: np.ndarray, val: np.ndarray, vocab_size: int, order: int = ORDER) -> np.ndarray:
    """Chances that counting `order` tokens in a row in `train` gives each token of `val`, its first ones left out:
    interpolated Kneser-Ney smoothing, modified (Chen and Goodman 1998, section 4.4).

    Longest first: what is taken from sequences that were seen goes to shorter ones, and these count in how many
    different sequences they occur, not how often.
    """
    V, order = vocab_size, min(order, len(train), len(val))
    wanted = _in_a_row(val, order, V)
    levels: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    found, counts = np.unique(_in_a_row(train, order, V), return_counts=True)
    for length in range(order, 0, -1):
        contexts, first = np.unique(found // V, return_index=True)
        taken = discounts(counts)[np.minimum(counts, 3)]
        times, given_on = np.add.reduceat(counts, first), np.add.reduceat(taken, first)
        levels.append((length, found, counts - taken, contexts, times, given_on))
        found, counts = np.unique(found % V ** (length - 1), return_counts=True)  # without its first token
    chance = np.full(len(wanted), 1.0 / V)
    for length, found, kept, contexts, times, given_on in reversed(levels):
        grams = wanted % V**length
        seen = _look_up(contexts, times, grams // V)
        known = _look_up(found, kept, grams) + _look_up(contexts, given_on, grams // V) * chance
        chance = np.where(seen > 0, known / np.maximum(seen, 1), chance)
    return chance


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from sequences that were seen 0, 1, 2 and more times, (4,), by how many there are of each (Chen and
    Goodman 1998, equation 26)."""
    once, twice, thrice, four_times = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].clip(0.5)
    share = once / (once + 2 * twice)
    taken = [1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four_times / thrice]
    return np.array([0, *(np.clip(d, 0.05, n - 0.001) for n, d in enumerate(taken, 1))])


def with_repetition(chances: np.ndarray, train: np.ndarray, val: np.ndarray) -> np.ndarray:
    """The chances of the last tokens of `val`, (n,), where the tokens before them stand OFTEN times or more in `train`:
    the share of those places that go on in the same way is mixed in, as much of it as helps most."""
    mixed = chances.copy()
    for length in LONGER:
        if min(len(train), len(val)) <= length:
            break
        known = mixed[length - len(val) :]  # what has so many tokens before it
        places = _times(window_hashes(train, length)[:-1], window_hashes(val, length)[:-1])
        often = places >= OFTEN
        right = _times(window_hashes(train, length + 1), window_hashes(val, length + 1)[often])
        known[often] = _best_mixture(known[often], right / places[often])
    return mixed


def with_copying(chances: np.ndarray, ids: np.ndarray, reaches: Sequence[int]) -> list[np.ndarray]:
    """The chances of `ids`, both (n,), where a token may be copied from so many tokens back, for each of the growing
    `reaches`: (rows, PIECE), one piece each.

    Where the last tokens stand a second time within reach, what followed there may follow again: for 1 to LONGEST
    tokens that agree, the share of such places that are right is mixed in, as much of it as helps most.
    """
    piece = min(PIECE, len(ids))
    rows = len(ids) // piece
    ids, chances = ids[: rows * piece].reshape(rows, piece), chances[: rows * piece].reshape(rows, piece)
    places, right = np.zeros((2, LONGEST, rows, piece))
    found = []
    for reach, before in zip(reaches, (1, *reaches)):
        for back in range(before, min(reach, piece)):
            same = np.zeros((rows, piece), bool)
            same[:, back:] = ids[:, back:] == ids[:, :-back]
            agree = np.ones((rows, piece), bool)
            for k in range(min(LONGEST, piece - 1)):
                agree[:, : k + 1] = False
                agree[:, k + 1 :] &= same[:, : -k - 1]
                places[k] += agree
                right[k] += agree & same
        found.append(_mixed(chances, places, right))
    return found


def _mixed(chances: np.ndarray, places: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The chances with the shares of `places` that are `right`, both (LONGEST, rows, PIECE), mixed in."""
    mixed = chances.copy()
    for n_places, n_right in zip(places, right):
        seen = n_places > 0
        if seen.any():
            mixed[seen] = _best_mixture(mixed[seen], n_right[seen] / n_places[seen])
    return mixed


def _best_mixture(chances: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """As much of `shares` in `chances` as makes the loss smallest."""
    if not len(chances):
        return chances
    return min((chances + weight * (shares - chances) for weight in np.arange(0, 1, 0.05)), key=loss)


def _times(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each of `wanted` (n,) is among `found` (m,)."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    keys, place = np.unique(wanted, return_inverse=True)
    at = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
    return np.bincount(at[keys[at] == found], minlength=len(keys))[place]


def overlaps(train: np.ndarray, val: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of the tokens of `val` (n,) that stand in passages of PASSAGE and more that `train` (m,) has too; and
    which tokens of `train` (m,) lie in such passages that stand in it only once."""
    if min(len(train), len(val)) < PASSAGE:
        return 0.0, np.zeros(len(train), bool)
    read, held_out = window_hashes(train, PASSAGE), window_hashes(val, PASSAGE)
    places = np.flatnonzero(np.isin(read, held_out))
    found, times = np.unique(read[places], return_counts=True)
    once = places[np.isin(read[places], found[times == 1])]
    return float(_covered(np.flatnonzero(np.isin(held_out, found)), len(val)).mean()), _covered(once, len(train))


def _covered(begins: np.ndarray, n: int) -> np.ndarray:
    """Which of n tokens stand in one of the passages that begin at `begins`."""
    steps = np.zeros(n + 1, np.int64)
    steps[begins] += 1
    steps[begins + PASSAGE] -= 1
    return steps.cumsum()[:-1] > 0


def _in_a_row(ids: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """Each `length` tokens in a row as one number to the base `vocab_size`, the newest as its last digit."""
    n = max(0, len(ids) - length + 1)
    numbers = np.zeros(n, np.int64)
    for k in range(length):
        numbers = numbers * vocab_size + ids[k : k + n]
    return numbers


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of `wanted` keys; 0 where there is none. `keys` in order."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
