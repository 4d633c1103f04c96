"""What every tokenizer can do: turn text into ids, and ids back into exactly that text.

A vocabulary is a list of byte strings, one per id, so decoding is the same for all: look the ids up and join. What
differs is which of the possible splits of a text `encode` picks. The last id of our own vocabularies is the separator,
which opens each document; it stands for no bytes and no text encodes to it, whatever is typed.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightwell.errors import TokenizerError
from lightwell.files.atomic import write_file
from lightwell.files.hashing import sha256_json

TOKENIZER_FILE = "tokenizer.json"
OUR_TOKENIZER_FILE = "lightwell_tokenizer.json"  # bytes and characters, beside a model for others


class Tokenizer(ABC):
    """Text <-> ids. `tokens[id]` is the bytes of a token; the separator's are none."""

    kind: str  # "bpe", "gpt2", "bytes" or "chars"

    def __init__(self, tokens: Sequence[bytes], separator_id: int) -> None:
        self._tokens = list(tokens)
        self.separator_id = separator_id

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """The ids of a text, uint32; fast for large texts. Raises TokenizerError for text with a lone surrogate."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All there is to this tokenizer, as what `save` writes."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, never the separator's. Raises TokenizerError for text with a lone surrogate."""
        return self.encode_array(text).tolist()

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of several texts, each uint32; in parallel where that helps."""
        return [self.encode_array(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Bytes that are not UTF-8 (half a character) become U+FFFD, separators nothing."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids. Raises TokenizerError for an id outside the vocabulary."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; b"" for the separator. Raises TokenizerError for an id outside the vocabulary."""
        if not 0 <= token_id < len(self._tokens):
            raise TokenizerError(f"expected an id from 0 to {len(self._tokens) - 1}, got {token_id}.")
        return self._tokens[token_id]

    def byte_lengths(self) -> np.ndarray:
        """How many bytes each id stands for, int64 (V,)."""
        return np.fromiter(map(len, self._tokens), dtype=np.int64, count=len(self._tokens))

    @property
    def vocab_size(self) -> int:
        """Number of ids, the separator's included."""
        return len(self._tokens)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical content: equal for tokenizers that do the same, however they were stored."""
        return sha256_json({"tokens": [token.hex() for token in self._tokens], **self._identity()})

    def _identity(self) -> dict[str, Any]:
        """What decides the ids of a text besides the tokens' bytes."""
        return {"kind": self.kind, "separator_id": self.separator_id}

    def save(self, path: Path) -> Path:
        """Write `path/tokenizer.json`, or `path` itself where it ends in .json; returns the file's path."""
        path = Path(path)
        file = path if path.suffix == ".json" else path / TOKENIZER_FILE
        write_file(file, json.dumps(self.to_json(), ensure_ascii=False, indent=1).encode())
        return file


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text. Raises TokenizerError where it holds half a surrogate pair, which is no character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"expected Unicode text, got a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}.",
            "Read the text as UTF-8 with errors='strict' or errors='replace'.",
        ) from error
