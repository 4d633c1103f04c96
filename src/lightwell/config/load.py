"""Where a config comes from: a preset, a TOML file, flags and `--set section.key=value`, each over the one before."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from lightwell.errors import ConfigError, UserError

Raw = dict[str, Any]


def read_toml(path: Path) -> Raw:
    """A TOML file as nested dictionaries. Raises UserError naming the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows begins a file with a mark
    except FileNotFoundError:
        hint = "`lightwell presets nano` prints one."
        raise UserError(f"expected a config file, found nothing at {path}.", hint) from None
    except IsADirectoryError:
        raise UserError(f"expected a config file, {path} is a folder.", "Name the file in it.") from None
    except (ValueError, RecursionError) as error:  # TOML's own, other encodings, huge numbers
        raise UserError(
            f"expected TOML in {path}, got: {error}.", "`lightwell presets nano` prints a whole config that works."
        ) from None


def merge(*layers: Raw) -> Raw:
    """Layers of nested dictionaries, later ones over earlier ones, section by section."""
    merged: Raw = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, dict) and isinstance(merged.get(section), dict):
                merged[section] = {**merged[section], **values}
            else:
                merged[section] = dict(values) if isinstance(values, dict) else values
    return merged


def parse_settings(settings: list[str]) -> Raw:
    """`["train.batch_size=32", "run.name=mine"]` as nested dictionaries; values are TOML, bare words are texts."""
    raw: Raw = {}
    wrong = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and section and dot and name):
            wrong.append((setting, "expected section.key=value"))
        else:
            raw.setdefault(section, {})[name] = _toml_value(value.strip())
    if wrong:
        raise ConfigError(wrong, "For instance: --set train.batch_size=32")
    return raw


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # as in `read_toml`
        return text


def require_utf8(raw: Raw) -> None:
    """Raise ConfigError for texts that no config can hold: names of files whose bytes are not UTF-8."""
    wrong = []
    for section, values in raw.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not is_utf8(text):
                    wrong.append((f"{section}.{key}", f"expected a name in UTF-8, got {text!r}"))
    if wrong:
        raise ConfigError(wrong, "Rename the file, or choose another name.")


def is_utf8(text: str) -> bool:
    """Whether it can be written in UTF-8: bytes of a name that cannot are kept by Python in characters of their own."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
