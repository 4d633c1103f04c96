"""Sentences of the glass box: found by key and language, with numbers put in.

`texts/<language>/<file>.toml` holds them; a key names the file and then the tables: "card.view.no". A language that
lacks a sentence falls back on English, so that a translation may grow sentence by sentence.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from lightwell.errors import UserError

DEFAULT = "en"


def say(key: str, language: str = DEFAULT, **values: object) -> str:
    """The sentence of a key, `{name}` replaced by the value given for it. Raises UserError for an unknown language."""
    file, *path = key.split(".")
    text = _find(_load(language, file), path)
    if text is None:
        text = _find(_load(DEFAULT, file), path)
    if text is None:
        raise KeyError(f"no sentence {key!r}")
    return text.format(**values) if values else text


def section(file: str, language: str = DEFAULT) -> dict[str, str]:
    """Every sentence of a file that stands at its top level, for those who do their own putting in."""
    found = {**_load(DEFAULT, file), **_load(language, file)}
    return {key: text for key, text in found.items() if isinstance(text, str)}


def languages() -> list[str]:
    """Those for which there are sentences."""
    return sorted(folder.name for folder in (files("lightwell.glass") / "texts").iterdir() if folder.is_dir())


@cache
def _load(language: str, file: str) -> dict[str, Any]:
    if language not in languages():
        raise UserError(f"expected a language out of {', '.join(languages())}, got {language!r}.")
    path = files("lightwell.glass") / "texts" / language / f"{file}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _find(table: dict[str, Any], path: list[str]) -> str | None:
    found: Any = table
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None
