"""What can be told of a text in a moment, before any model was trained on it: how much there is, and how hard it is.

Two figures, both in bits per byte. `difficulty` is what a general compressor (LZMA) needs: it finds what is repeated
word for word over long distances, as a large model will in time. `bigram` is the held-out loss of counting which token
follows which: about what a small model knows after its first steps.
"""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass

import numpy as np

from lightwell.data.dataset import Dataset

SAMPLE_BYTES, PLACES = 400_000, 100  # for the compressor, put together from so many places
COUNTED, SCATTERED = 130_000, 500  # tokens for the bigrams, and places: as mixed as a model's batches. More would make
# the figures of long texts lower than those of short ones.
ORDER = 3  # tokens in a row that are counted
DISCOUNT = 0.75  # of a count, kept for pairs that were not seen (Ney, Essen and Kneser 1994)


@dataclass(frozen=True)
class Text:
    """`tokens` to train on; `difficulty` and `bigram` as above."""

    tokens: int
    difficulty: float
    bigram: float


TYPICAL_DIFFICULTY, TYPICAL_BIGRAM = 2.1, 2.3  # of prose and code; exact once a text is prepared


def describe(dataset: Dataset) -> Text:
    """Look at samples of a prepared text."""
    lengths = dataset.tokenizer.byte_lengths()
    ids = dataset.train.scattered(SAMPLE_BYTES // 3, PLACES)  # tokens of about three bytes
    text = dataset.tokenizer.decode_bytes(ids.tolist())
    train, val = dataset.train.scattered(COUNTED, SCATTERED), dataset.val.scattered(2 * COUNTED, SCATTERED)
    nats = ngram_nats(train, val, dataset.tokenizer.vocab_size)
    return Text(len(dataset.train), difficulty(text), nats / math.log(2) / max(1e-9, float(lengths[val].mean())))


def difficulty(text: bytes) -> float:
    """Bits per byte that LZMA needs for a sample of a text, which should have SAMPLE_BYTES."""
    packed = lzma.compress(text, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return 8 * len(packed) / max(1, len(text))


def ngram_nats(train: np.ndarray, val: np.ndarray, vocab_size: int, order: int = ORDER) -> float:
    """Nats per token of `val` under counts of `order` tokens in a row in `train`: interpolated Kneser-Ney smoothing.

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
    return float(-np.log(chance).mean())


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
