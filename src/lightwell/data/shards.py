"""Token shards on disk: one long stream of ids, cut into files of bounded size, read through memory maps.

    train-00000.bin  ids, little-endian uint16 (vocabularies up to 65,536) or uint32
    train-00000.idx  places inside this shard where documents start, little-endian uint64

The stream is separator, document, separator, document ...; a document starts at its separator, and one that does not
fit into a shard goes on in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

SHARD_TOKENS = 1 << 27  # 256 MB of uint16


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest type on disk that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def opened_by(separator_id: int, ids: np.ndarray) -> np.ndarray:
    """A document's ids with the separator before them, in their own dtype."""
    return np.concatenate([np.array([separator_id], ids.dtype), ids])


def shard_name(split: str, number: int, suffix: str) -> str:
    return f"{split}-{number:05d}.{suffix}"


class ShardWriter:
    """Writes the shards of one split into a folder, document by document. `tokens` and `documents` count them.

    Used in a `with`, whose end completes the last shard.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split, self._dtype, self._shard_tokens = folder, split, dtype, shard_tokens
        self._filled = 0  # tokens in the current shard
        self._starts: list[int] = []
        self.shards = self.tokens = self.documents = 0

    def add(self, ids: np.ndarray) -> None:
        """Append a document, its separator first."""
        ids = ids.astype(self._dtype)
        if self._filled == self._shard_tokens:
            self._next_shard()
        self._starts.append(self._filled)
        self.documents += 1
        while len(ids) > (room := self._shard_tokens - self._filled):
            self._write(ids[:room])
            ids = ids[room:]
            self._next_shard()
        self._write(ids)

    def __enter__(self) -> ShardWriter:
        self._open_shard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close_shard()

    def _write(self, ids: np.ndarray) -> None:
        self._file.write(ids.data)
        self._filled += len(ids)
        self.tokens += len(ids)

    def _next_shard(self) -> None:
        self._close_shard()
        self._open_shard()

    def _open_shard(self) -> None:
        self._file = open(self._folder / shard_name(self._split, self.shards, "bin"), "xb")  # noqa: SIM115
        self._filled, self._starts = 0, []
        self.shards += 1

    def _close_shard(self) -> None:
        self._file.close()
        starts = np.array(self._starts, dtype="<u8")
        (self._folder / shard_name(self._split, self.shards - 1, "idx")).write_bytes(starts.tobytes())


class TokenStream:
    """The ids of one split as if they were one array. `document_starts`: where in it documents begin, uint64.

    `n_bytes`: the bytes of the original text, before any tokenizer.
    """

    def __init__(self, shards: Sequence[np.ndarray], starts: Sequence[np.ndarray], n_bytes: int) -> None:
        self._shards = list(shards)
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        offsets = self._ends - [len(shard) for shard in self._shards]
        self.document_starts = np.concatenate(
            [s + np.uint64(offset) for s, offset in zip(starts, offsets, strict=True)]
        )
        self.n_bytes = n_bytes

    @classmethod
    def open(cls, folder: Path, split: str, shards: int, dtype: np.dtype, n_bytes: int) -> TokenStream:
        """Map the shards of a split. Nothing is read until it is asked for."""
        ids = [_map(folder / shard_name(split, number, "bin"), dtype) for number in range(shards)]
        starts = [_map(folder / shard_name(split, number, "idx"), np.dtype("<u8")) for number in range(shards)]
        return cls(ids, starts, n_bytes)

    @classmethod
    def from_documents(cls, documents: Sequence[np.ndarray], separator_id: int, n_bytes: int) -> TokenStream:
        """A stream in memory: each document opened by the separator."""
        opened = [opened_by(separator_id, ids) for ids in documents]
        starts = np.cumsum([0] + [len(ids) for ids in opened[:-1]]).astype(np.uint64)
        return cls([np.concatenate(opened)], [starts], n_bytes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids from `start` to before `stop`, as stored; fewer where the stream ends. A view if one shard has them."""
        stop = min(stop, len(self))
        first = int(np.searchsorted(self._ends, start, side="right"))
        if first >= len(self._shards) or start >= stop:
            return self._shards[0][:0]
        offset = int(self._ends[first]) - len(self._shards[first])
        piece = self._shards[first][start - offset : stop - offset]
        if len(piece) == stop - start:
            return piece
        return np.concatenate([piece, self.read(start + len(piece), stop)])

    def scattered(self, tokens: int, places: int) -> np.ndarray:
        """About so many ids, in equal pieces from so many places over all of the stream; a shorter stream whole."""
        if len(self) <= tokens:
            return np.asarray(self.read(0, len(self)))
        length = tokens // places
        starts = np.linspace(0, len(self) - length, places).astype(int)
        return np.concatenate([np.asarray(self.read(int(start), int(start) + length)) for start in starts])


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file as a read-only array. An empty file cannot be mapped, so it is made here."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)  # slices of a plain array cost a fifth as much
