"""What a terminal can show: colour or not, its width, and how wide a text is there.

Colour follows https://no-color.org and the stream: `wants_color`. Escape sequences are ECMA-48's; the width of a
character is Unicode's East Asian Width (UAX #11), with combining marks and joiners counted as nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from typing import TextIO

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_CODES = {"bold": "1", "dim": "2", "underline": "4", "reverse": "7"}


def wants_color(stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """True when `stream` is a terminal that shows colour and the user has not set NO_COLOR. FORCE_COLOR means yes."""
    environ = os.environ if environ is None else environ
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def terminal_width(limit: int = 120) -> int:
    """Columns of the terminal (COLUMNS, or what the terminal says; 80 where there is none), at most `limit`."""
    return min(limit, shutil.get_terminal_size((80, 24)).columns)


def paint(text: str, style: str, color: bool = True) -> str:
    """`text` in a style: words of bold, dim, underline, reverse, `#rrggbb` (text), `on:#rrggbb` (background)."""
    if not color or not text or not style:
        return text
    return f"\x1b[{';'.join(_code(word) for word in style.split())}m{text}\x1b[0m"


def _code(word: str) -> str:
    if word in _CODES:
        return _CODES[word]
    place, rgb = ("48", word[3:]) if word.startswith("on:") else ("38", word)
    red, green, blue = (int(rgb[start : start + 2], 16) for start in (1, 3, 5))
    return f"{place};2;{red};{green};{blue}"


def plain(text: str) -> str:
    """`text` without escape sequences."""
    return _ESCAPE.sub("", text)


def visible_width(text: str) -> int:
    """Columns that `text` takes: escape sequences none, East Asian wide characters two, combining marks none."""
    return sum(_character_width(character) for character in plain(text))


def _character_width(character: str) -> int:
    if character < "\x7f":
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def pad(text: str, width: int, align: str = "l") -> str:
    """`text` filled with spaces to `width` columns; align `l`, `r` or `c`."""
    missing = max(0, width - visible_width(text))
    left = {"l": 0, "r": missing, "c": missing // 2}[align]
    return " " * left + text + " " * (missing - left)


def shorten(text: str, width: int) -> str:
    """`text` cut to `width` columns, the cut marked by an ellipsis; a text with escape sequences loses them if cut."""
    if visible_width(text) <= width:
        return text
    kept, used = "", 1
    for character in plain(text):
        used += _character_width(character)
        if used > width:
            break
        kept += character
    return kept + "…" if width > 0 else ""


def one_line(text: str) -> str:
    """`text` with control characters made visible (a newline is `↵`, a tab `⇥`), so that it keeps to its line."""
    named = text.replace("\r\n", "↵").replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in named)
