"""Large texts in stretches that can be encoded one by one, in parallel, with the ids that the whole would get.

No pattern that we know has a piece that goes on with a space after something that is not white space, and none looks
back. So between two such characters there always is a cut, whatever stands around. With the patterns of Lightwell and
GPT-2 the same holds for line breaks; Qwen's keeps them together with punctuation before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

STRETCH = 1 << 16  # bytes given to the encoder at once
LONGEST = 1 << 14  # bytes without a safe cut that tiktoken gets; its regex gives up at about a million blanks

_WHITE = tuple(chr(code).encode() for code in range(0x80, 0x3001) if chr(code).isspace())  # beyond ASCII's
_ENDS_SOLID = np.zeros(256, dtype=bool)  # bytes that end a character that is not white space,
_ENDS_SOLID[0x21:0x7F] = True
_ENDS_SOLID[0x80:0xC0] = True
_DOUBTFUL = np.isin(np.arange(256), [character[-1] for character in _WHITE])  # and may end white ones


def stretches(data: bytes, blanks: bytes = b" \n", longest: int = LONGEST) -> Iterator[tuple[bytes, bool]]:
    """Cut UTF-8 into stretches that can be encoded one by one; with each, whether it may hold a very long piece.

    blanks: before which of them to cut. longest: bytes that a piece may have.
    """
    if len(data) <= longest:
        if data:
            yield data, False
        return
    values = np.frombuffer(data, dtype=np.uint8)
    is_blank = np.isin(values[1:], list(blanks))
    safe = np.flatnonzero(_ENDS_SOLID[values[:-1]] & is_blank) + 1
    doubtful = np.flatnonzero(_DOUBTFUL[values[safe - 1]])
    safe = np.delete(safe, [n for n in doubtful if data[max(0, safe[n] - 3) : safe[n]].endswith(_WHITE)])
    safe = np.concatenate([[0], safe, [len(data)]])
    long = np.flatnonzero(np.diff(safe) > longest)
    regular = safe[np.searchsorted(safe, np.arange(STRETCH, len(data), STRETCH))]
    ends = np.unique(np.concatenate([[0, len(data)], regular, safe[long], safe[long + 1]]))
    starts_long = set(safe[long].tolist())
    for start, end in pairwise(ends.tolist()):
        yield data[start:end], start in starts_long
