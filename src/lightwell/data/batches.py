"""Which tokens does training step n see? A pure function of (seed, n): no iterator, no state, nothing to save.

A stream of tokens is cut into windows of `context_length` T. Window i asks the model to predict, from each token, the
one after it, so inputs and targets are the same stretch of the stream, shifted by one:

    inputs   stream[i*T     : i*T + T]
    targets  stream[i*T + 1 : i*T + T + 1]

Every token of the stream but its very first is thus a target exactly once per pass over the data (epoch). The last
window is usually cut short by the end of the stream: its missing targets are -100, which the loss ignores.

Each epoch visits the windows in another order. Storing a shuffled list of a billion windows is out of the question, and
so is saving how far a random generator has come. Instead `permute` computes where the k-th place of a shuffled list
points to, for any k by itself. So a resumed run needs only its step number, and any number of processes agree on who
takes which row without talking to each other.

Sources: Luby and Rackoff 1988 (a Feistel network makes permutations out of hash functions); Black and Rogaway 2002
("cycle walking": from a power of two to any size).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from lightwell.data.shards import TokenStream
from lightwell.errors import DataError

IGNORE = -100  # a target that does not count: torch's ignore_index
ROUNDS = 6


@dataclass(frozen=True)
class Batch:
    """Rows of one step. All tensors are int64 (b, T).

    `ids`: inputs. `targets`: the next tokens, -100 past the end of the stream. `documents`: the number of the document
    each input belongs to, counted over the whole stream. `rows`: which rows of the step these are.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor
    rows: range

    def pin(self) -> Batch:
        """The same batch in memory that a GPU can fetch by itself."""
        return Batch(self.ids.pin_memory(), self.targets.pin_memory(), self.documents.pin_memory(), self.rows)


class Batches:
    """Batches of `batch_size` windows of a stream, `context_length` tokens each, in an order that `seed` decides.

    Raises DataError for a stream without anything to predict.
    """

    def __init__(self, stream: TokenStream, batch_size: int, context_length: int, seed: int) -> None:
        if len(stream) < 2:
            raise DataError(f"expected at least 2 tokens to train on, got {len(stream)}.", "Give more text.")
        self.stream, self.batch_size, self.context_length, self.seed = stream, batch_size, context_length, seed
        self.n_windows = -(-(len(stream) - 1) // context_length)  # rounded up

    @property
    def steps_per_epoch(self) -> float:
        """How many steps one pass over the data takes; an epoch may end in the middle of a step."""
        return self.n_windows / self.batch_size

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of a step (counted from 0) that process `rank` of `world` holds. The same each time it is asked."""
        first, last = rank * self.batch_size // world, (rank + 1) * self.batch_size // world
        return self.gather(self.windows(step)[first:last], range(first, last))

    def windows(self, step: int) -> np.ndarray:
        """The window numbers of all rows of a step, int64 (batch_size,).

        The sequences of a whole training are numbered through; n_windows of them make an epoch, each in its own order.
        """
        epochs, places = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.n_windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            windows[rows] = permute(places[rows], self.n_windows, self.seed, int(epoch))
        return windows

    def gather(self, windows: np.ndarray, rows: range) -> Batch:
        """Read windows from the stream."""
        T = self.context_length
        separator = self.stream.read(0, 1)[0]  # fills the inputs past the end; no target there counts
        tokens = np.full((len(windows), T + 1), separator, dtype=np.int64)
        targets = np.full((len(windows), T), IGNORE, dtype=np.int64)
        for row, window in enumerate(windows.tolist()):
            found = self.stream.read(window * T, window * T + T + 1)
            tokens[row, : len(found)] = found
            targets[row, : len(found) - 1] = found[1:]
        places = windows[:, None] * T + np.arange(T)
        documents = np.searchsorted(self.stream.document_starts, places.astype(np.uint64), side="right") - 1
        return Batch(
            torch.from_numpy(np.ascontiguousarray(tokens[:, :T])),
            torch.from_numpy(targets),
            torch.from_numpy(documents),
            rows,
        )


def permute(places: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a shuffled list of 0 ... n-1 points to at the given places, int64, without making the list.

    A different order for each (seed, epoch). One to one: distinct places get distinct results, all below n.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits: the network permutes 0 ... 4**half - 1, less than 4n numbers
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    numbers = _feistel(places.astype(np.uint64), keys, half)
    # Cycle walking: whoever lands outside is sent on until inside. Following a permutation from inside always comes
    # back inside, and two walks never meet, since a permutation never sends two numbers to the same place.
    while (outside := numbers >= n).any():
        numbers[outside] = _feistel(numbers[outside], keys, half)
    return numbers.astype(np.int64)


def _feistel(numbers: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """Permute the numbers of 2 x `half` bits.

    Each round swaps the halves and adds to one (by exclusive or) a scrambling of the other. The other is still there
    to be seen, so the round can be undone whatever the scrambling is: that makes it a permutation.
    """
    mask = np.uint64((1 << half) - 1)
    left, right = numbers >> np.uint64(half), numbers & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _scramble(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each number (the end of splitmix64, Steele et al. 2014); products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
