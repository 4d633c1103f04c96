"""Two tokenizers without training: one id per byte, and one id per character with bytes for what is new.

Good for small experiments, for lessons, and as what byte-pair encoding is compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from lightwell.errors import TokenizerError
from lightwell.tokenizer.base import Tokenizer, utf8

BYTES = [bytes([value]) for value in range(256)]


class BytesTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and the separator: nothing to learn, nothing it cannot spell."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([*BYTES, b""], separator_id=256)

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.uint32)

    def to_json(self) -> dict[str, Any]:
        return {"lightwell": {"format": 1, "kind": self.kind}}


class CharTokenizer(Tokenizer):
    """An id per character. Ids 0 to 255 are bytes, which ASCII characters are and which spell characters not listed.

    `characters`: those beyond ASCII that have an id of their own, in the order of their ids from 256 on.
    """

    kind = "chars"

    def __init__(self, characters: str) -> None:
        if len(set(characters)) != len(characters) or any(character.isascii() for character in characters):
            raise TokenizerError("expected distinct characters beyond ASCII, got a repetition or an ASCII character.")
        super().__init__([*BYTES, *map(utf8, characters), b""], separator_id=256 + len(characters))
        self.characters = characters
        ids = sorted((ord(character), 256 + index) for index, character in enumerate(characters))
        self._code_points = np.array([*range(128), *(code for code, _ in ids)], dtype=np.uint32)  # ascending
        self._ids = np.array([*range(128), *(token for _, token in ids)], dtype=np.uint32)

    def encode_array(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
        places = np.searchsorted(self._code_points, codes).clip(max=len(self._code_points) - 1)
        known = self._code_points[places] == codes
        if known.all():
            return self._ids[places]
        return self._encode_with_bytes(utf8(text), codes, known, self._ids[places])

    def _encode_with_bytes(self, data: bytes, codes: np.ndarray, known: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Known characters by id, the others by their UTF-8 bytes."""
        widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)  # bytes of each character
        starts = np.cumsum(widths) - widths
        encoded = np.frombuffer(data, dtype=np.uint8).astype(np.uint32)
        keep = np.repeat(~known, widths)  # a known character keeps its first place only, which takes its id
        keep[starts[known]] = True
        encoded[starts[known]] = ids[known]
        return encoded[keep]

    def to_json(self) -> dict[str, Any]:
        return {"lightwell": {"format": 1, "kind": self.kind}, "characters": self.characters}


def train_characters(texts: Iterable[str], vocab_size: int | None = None) -> CharTokenizer:
    """The characters of some texts; if `vocab_size` is given, the most frequent of them that fit.

    Raises TokenizerError if `vocab_size` leaves no room for the 256 bytes and the separator.
    """
    if vocab_size is not None and vocab_size < 257:
        raise TokenizerError(f"expected a vocabulary of at least 257 (256 bytes, a separator), got {vocab_size}.")
    counts: Counter[str] = Counter()
    for text in texts:
        utf8(text)
        counts.update(text)
    ranked = sorted((c for c in counts if not c.isascii()), key=lambda c: (-counts[c], c))
    return CharTokenizer("".join(sorted(ranked if vocab_size is None else ranked[: vocab_size - 257])))
