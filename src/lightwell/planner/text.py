"""What can be told of a text in a moment, before a model is trained on it: how much there is, and how hard it is.

Sequences of three tokens are counted and held to the held-out part: about what a small model knows after a minute.

    difficulty  the loss of these counts, in bits per byte
    gain        the loss when a quarter of the text is counted, over `difficulty`
    copying     the loss where what stands nearby may be copied too, over `difficulty`: attention learns to copy
    pilot       the loss of a small model after a moment, if one was tried (pilot.py)
    learned     `pilot` over the loss of counting as much of the text
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lightwell.data.dataset import Dataset

COUNTED, LOOKED_AT = 1_500_000, 60_000  # tokens, to count and to predict: of longer texts a part, so that figures of
PIECE = 250  # long and short ones can be compared; in pieces of so many, from all over
LESS = 4  # times less text, for `gain`
ORDER = 3  # tokens in a row that are counted
NEARBY, LONGEST = 128, 4  # tokens back to copy from, and tokens that are compared to find the place
PILOT_TOKENS = 300_000  # that the pilot is trained on
DISCOUNT = 0.75  # of a count, kept for sequences that were not seen (Ney, Essen and Kneser 1994)


@dataclass(frozen=True)
class Text:
    """`tokens` to train on; the others as above."""

    tokens: int
    difficulty: float
    gain: float
    copying: float
    pilot: float | None = None

    @property
    def learned(self) -> float:
        return 1.0 if self.pilot is None else self.pilot / self.bits_of_counts(PILOT_TOKENS)

    def bits_of_counts(self, tokens: int) -> float:
        """Bits per byte that counting would need after so many tokens of this text, or after all that were counted."""
        counted = min(self.tokens, COUNTED)
        return self.difficulty * self.gain ** math.log(counted / min(tokens, counted), LESS)


def typical_text(tokens: int) -> Text:
    """What to expect of prose and code before any of it was prepared."""
    long = Text(COUNTED, 1.6, 1.13, 0.92)
    return replace(long, tokens=tokens, difficulty=long.bits_of_counts(tokens))


def describe(dataset: Dataset) -> Text:
    """Look at a prepared text; a fraction of a second."""
    vocab_size, tokens = dataset.tokenizer.vocab_size, min(len(dataset.train), COUNTED)
    val = dataset.val.scattered(LOOKED_AT, LOOKED_AT // PIECE)
    less, all_ = (
        ngram_chances(dataset.train.scattered(n, max(1, n // PIECE)), val, vocab_size)
        for n in (max(2, tokens // LESS), tokens)
    )
    nats = max(1e-9, loss(all_))
    bytes_per_token = max(1e-9, float(dataset.tokenizer.byte_lengths()[val].mean()))
    copied = with_copying(all_, val[len(val) - len(all_) :])
    copying = loss(copied) / max(1e-9, loss(all_[: copied.size]))
    return Text(len(dataset.train), nats / math.log(2) / bytes_per_token, loss(less) / nats, copying)


def loss(chances: np.ndarray) -> float:
    """Nats per token, where each had these chances."""
    return float(-np.log(chances).mean())


def ngram_chances(train: np.ndarray, val: np.ndarray, vocab_size: int, order: int = ORDER) -> np.ndarray:
    """Chances that counting `order` tokens in a row in `train` gives each token of `val`, its first ones left out:
    interpolated Kneser-Ney smoothing.

    Longest first: what is taken from sequences that were seen goes to shorter ones, and these count in how many
    different sequences they occur, not how often (Chen and Goodman 1998, equation 26, with one discount).
    """
    V, order = vocab_size, min(order, len(train), len(val))
    wanted = _in_a_row(val, order, V)
    levels: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    found, counts = np.unique(_in_a_row(train, order, V), return_counts=True)
    for length in range(order, 0, -1):
        contexts, first = np.unique(found // V, return_index=True)
        times, different = np.add.reduceat(counts, first), np.diff([*first, len(found)])
        levels.append((length, found, counts, contexts, times, different))
        found, counts = np.unique(found % V ** (length - 1), return_counts=True)  # without its first token
    chance = np.full(len(wanted), 1.0 / V)
    for length, found, counts, contexts, times, different in reversed(levels):
        grams = wanted % V**length
        kept = np.maximum(_look_up(found, counts, grams) - DISCOUNT, 0)
        given_on = DISCOUNT * _look_up(contexts, different, grams // V)
        seen = _look_up(contexts, times, grams // V)
        chance = np.where(seen > 0, (kept + given_on * chance) / np.maximum(seen, 1), chance)
    return chance


def with_copying(chances: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The chances of `ids`, both (n,), where a token may be copied from nearby: (rows, PIECE), one piece each.

    Where the last tokens stand a second time within NEARBY, what followed there may follow again: for 1 to LONGEST
    tokens that agree, the share of such places that are right is mixed in, as much of it as helps most.
    """
    piece = min(PIECE, len(ids))
    rows = len(ids) // piece
    ids, mixed = ids[: rows * piece].reshape(rows, piece), chances[: rows * piece].reshape(rows, piece).copy()
    places, right = np.zeros((2, LONGEST, rows, piece))
    for back in range(1, min(NEARBY, piece)):
        same = np.zeros((rows, piece), bool)
        same[:, back:] = ids[:, back:] == ids[:, :-back]
        agree = np.ones((rows, piece), bool)
        for k in range(min(LONGEST, piece - 1)):
            agree[:, : k + 1] = False
            agree[:, k + 1 :] &= same[:, : -k - 1]
            places[k] += agree
            right[k] += agree & same
    for n_places, n_right in zip(places, right):
        found = n_places > 0
        if found.any():
            known, share = mixed[found], n_right[found] / n_places[found]
            mixed[found] = min((known + weight * (share - known) for weight in np.arange(0, 1, 0.05)), key=loss)
    return mixed


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
