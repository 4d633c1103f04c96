"""Which part of the text is held out, to measure the model on what it has never seen.

Small documents are held out whole. Large ones are cut into passages at paragraph boundaries first, so that one novel
can be split too. Where to cut is decided by a hash of the paragraph before the cut, and which passages to hold out by
a hash of their bytes: the same on any machine and in any order of files, and text added later moves little. A passage
that occurs twice, say in two files, is as a rule cut alike both times, and then held out or trained on as one.
Source: Muthitacharoen et al. 2001 (cutting by content, LBFS).
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from lightwell.errors import DataError

STRETCH = 64_000  # bytes: the least to hold out; a text must have twice as much (passages are held out whole)
SHARE = 100  # one part in so many is held out, if that is more
MOST = 10_000_000  # bytes: the most that is held out
SMALLEST, LARGEST = 8_000, 24_000  # bytes of a passage
_ONE_IN = 16  # paragraphs end a passage, once it is large enough

_BLANK_LINES = re.compile(rb"\n[ \t\r]*\n\s*")
_LINE_END = re.compile(rb"\n\s*")


@dataclass(frozen=True)
class Passage:
    """A part of a document: its bytes from `start` to before `end`, and their hash."""

    start: int
    end: int
    digest: bytes

    @property
    def n_bytes(self) -> int:
        return self.end - self.start


def digest_of(text: bytes) -> bytes:
    """What decides about a text: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(text, digest_size=16).digest()


def passages(text: bytes) -> list[Passage]:
    """Cut a document into passages of 8 to 24 kB, the last of up to 32, at paragraph ends where there are any. Joined,
    they are it again."""
    starts = [0]
    if len(text) > LARGEST:
        for end_of_words, end in _paragraph_ends(text):
            _cut_what_is_too_long(text, starts, end)
            last_words = text[max(starts[-1], end_of_words - 64) : end_of_words]
            if end - starts[-1] >= SMALLEST and zlib.crc32(last_words) % _ONE_IN == 0:
                starts.append(end)
        _cut_what_is_too_long(text, starts, len(text))
        if len(starts) > 1 and len(text) - starts[-1] < SMALLEST:
            starts.pop()  # the rest is short: it belongs to the passage before
    ends = [*starts[1:], len(text)]
    return [Passage(start, end, digest_of(text[start:end])) for start, end in zip(starts, ends, strict=True)]


def _paragraph_ends(text: bytes) -> list[tuple[int, int]]:
    """Where paragraphs end: their words, and the blank lines after them. A text without blank lines: its lines."""
    ends = [match.span() for match in _BLANK_LINES.finditer(text)]
    if len(ends) * LARGEST < len(text):
        ends = [match.span() for match in _LINE_END.finditer(text)]
    return ends


def _cut_what_is_too_long(text: bytes, starts: list[int], end: int) -> None:
    """Cut what no paragraph end has divided."""
    while end - starts[-1] > LARGEST:
        starts.append(best_cut(text, starts[-1] + SMALLEST, starts[-1] + LARGEST))


def best_cut(text: bytes, low: int, high: int) -> int:
    """The last place from `low` to `high` after blank lines, else after a line, a blank, or any character."""
    for mark in (b"\n\n", b"\n", b" "):
        place = text.rfind(mark, low, high)
        if place >= 0:
            return place + len(mark)
    while text[high] & 0xC0 == 0x80:  # the later bytes of a UTF-8 character are 10xxxxxx
        high -= 1
    return high


def choose_held_out(documents: Sequence[Sequence[Passage]]) -> set[bytes]:
    """The digests of the passages to hold out: at least max(64 kB, 1%) and at most 10 MB, together.

    Raises DataError if the text is too short to hold out 64 kB and to learn from as much.
    """
    sizes: dict[bytes, int] = {}
    for document in documents:
        for passage in document:
            sizes[passage.digest] = passage.n_bytes
    total = sum(sizes.values())
    least = 2 * STRETCH // 1000
    if total < 2 * STRETCH:
        raise DataError(
            f"expected at least {least} kB of text (to hold out and to learn from), got {total:,} different bytes.",
            "Add text, or name the text to measure on with --val.",
        )
    target = min(max(STRETCH, total // SHARE), MOST - 2 * LARGEST)
    chosen: set[bytes] = set()
    held = 0
    for digest in sorted(sizes):
        if held >= target:
            break
        chosen.add(digest)
        held += sizes[digest]
    return chosen
