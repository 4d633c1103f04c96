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
from lightwell.data.shards import TokenStream

SAMPLE_BYTES, PLACES = 400_000, 100  # for the compressor, put together from so many places
COUNTED, SCATTERED = 130_000, 500  # tokens for the bigrams, and places: as mixed as a model's batches. More would make
# the figures of long texts lower than those of short ones.
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
    ids = sample(dataset.train, SAMPLE_BYTES // 3, PLACES)  # tokens of about three bytes
    text = dataset.tokenizer.decode_bytes(ids.tolist())
    train, val = sample(dataset.train, COUNTED, SCATTERED), sample(dataset.val, 2 * COUNTED, SCATTERED)
    nats = bigram_nats(train, val, dataset.tokenizer.vocab_size)
    return Text(len(dataset.train), difficulty(text), nats / math.log(2) / max(1e-9, float(lengths[val].mean())))


def sample(stream: TokenStream, tokens: int, places: int) -> np.ndarray:
    """About so many tokens, from places spread over the stream; all of a short one."""
    if len(stream) <= tokens:
        return np.asarray(stream.read(0, len(stream)))
    length = tokens // places
    starts = np.linspace(0, len(stream) - length, places).astype(int)
    return np.concatenate([np.asarray(stream.read(int(start), int(start) + length)) for start in starts])


def difficulty(text: bytes) -> float:
    """Bits per byte that LZMA needs for a sample of a text, which should have SAMPLE_BYTES."""
    packed = lzma.compress(text, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return 8 * len(packed) / max(1, len(text))


def bigram_nats(train: np.ndarray, val: np.ndarray, vocab_size: int) -> float:
    """Nats per token of `val` under counts of pairs in `train`, with absolute discounting: what is taken from pairs
    that were seen goes to tokens by how frequent they are."""
    train, val = train.astype(np.int64), val.astype(np.int64)
    frequency = np.bincount(train, minlength=vocab_size) + 0.5
    alone = frequency / frequency.sum()
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    seen = np.bincount(train[:-1], minlength=vocab_size)
    different = np.bincount(pairs // vocab_size, minlength=vocab_size)
    wanted = val[:-1] * vocab_size + val[1:]
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[place] == wanted, counts[place], 0)
    times = seen[val[:-1]]
    kept = np.maximum(count - DISCOUNT, 0)
    given_on = DISCOUNT * different[val[:-1]]
    chance = np.where(times > 0, (kept + given_on * alone[val[1:]]) / np.maximum(times, 1), alone[val[1:]])
    return float(-np.log(chance).mean())
