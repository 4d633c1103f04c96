"""Limits for files that a stranger may have written, checked before anything parses them.

A header that claims a gigabyte, brackets nested a million deep, tensors that overlap or lie outside the file: each is
refused by a cheap check here instead of being met by a parser that trusts it.
Sources: RFC 8259 (JSON); the safetensors format description (huggingface/safetensors README, "Format").
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from lightwell.errors import DamagedError, UserError
from lightwell.files.space import in_words

MAX_JSON_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_HEADER_BYTES = 16 << 20  # of a safetensors file; GPT-2 1558M needs 60 kB

# A string to its end (or to the end of the text, so that a hostile one is read once), or one bracket.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)

# Bytes per element of each safetensors type that we accept.
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def read_json(
    path: Path,
    max_bytes: int = MAX_JSON_BYTES,
    max_depth: int = MAX_DEPTH,
    error: type[UserError] = DamagedError,
) -> Any:
    """The value in a JSON file (UTF-8, no NaN). Raises `error` if it is too large, too deep, or not JSON."""
    return parse_json(_read(path, max_bytes, error), str(path), max_depth, error)


def parse_json(text: bytes, where: str, max_depth: int = MAX_DEPTH, error: type[UserError] = DamagedError) -> Any:
    """The value of a JSON text that came from `where`. Raises `error` if it is too deep or not JSON."""
    if json_depth(text, enough=max_depth + 1) > max_depth:
        raise error(f"expected JSON at most {max_depth} levels deep in {where}, got more.")
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except ValueError as problem:  # JSONDecodeError, UnicodeDecodeError, absurdly long numbers
        raise error(f"expected JSON in {where}, got something else ({problem}).") from problem


def read_toml(path: Path, max_bytes: int = 1 << 20, max_depth: int = MAX_DEPTH, hint: str = "") -> dict[str, Any]:
    """The table in a TOML file. Raises DamagedError, with `hint`, if it is too large, too deep, or not TOML."""
    text = _read(path, max_bytes, DamagedError)
    try:
        table = tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise DamagedError(f"expected TOML in {path}, got something else ({problem}).", hint) from problem
    if value_depth(table) > max_depth:
        raise DamagedError(f"expected TOML at most {max_depth} levels deep in {path}, got more.", hint)
    return table


def safetensors_header(path: Path, error: type[UserError] = DamagedError) -> tuple[dict[str, Any], int]:
    """The checked header of a safetensors file: ({name: {"dtype", "shape", "data_offsets"}, ...}, start of the data).

    Tensors come in the order of their bytes; "__metadata__", if there, comes first. Checked: the header's size, its
    depth and form; known types; each tensor exactly as long as its shape says; none outside the file, none
    overlapping, no gaps. Raises `error` naming what is wrong.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            limit = in_words(MAX_HEADER_BYTES)
            raise error(
                f"expected a header of at most {limit} inside {path}, got {in_words(length)} in {in_words(size)}."
            )
        header = parse_json(file.read(length), str(path), max_depth=4, error=error)
    if not isinstance(header, dict):
        raise error(f"expected the header of {path} to be an object, got {type(header).__name__}.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error(f"expected __metadata__ of {path} to hold texts, got something else.")
    for name, entry in header.items():
        _check_entry(entry, f"tensor {name!r} of {path}", error)
    ordered = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    end = size - 8 - length
    spans = [(0, 0), *(entry["data_offsets"] for entry in ordered.values()), (end, end)]
    if any(before[1] != after[0] for before, after in pairwise(spans)):
        raise error(f"expected the tensors of {path} to fill it without gap or overlap, got other places.")
    return {"__metadata__": metadata, **ordered}, 8 + length


def _check_entry(entry: Any, what: str, error: type[UserError]) -> None:
    """Raise `error` unless `entry` describes a tensor whose bytes are as many as its shape and type need."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise error(f"expected dtype, shape and data_offsets for {what}, got {str(entry)[:80]}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise error(f"expected one of {', '.join(DTYPE_BYTES)} as the type of {what}, got {str(dtype)[:80]}.")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"expected sizes as the shape and place of {what}, got {str(shape)[:80]} and {str(offsets)[:80]}.")
    if math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise error(f"expected as many bytes for {what} as its shape needs, got {offsets[1] - offsets[0]}.")


def _are_sizes(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
    )


def json_depth(text: bytes, enough: int = sys.maxsize) -> int:
    """How deep the brackets of a JSON text nest, counted without recursion; at `enough` the counting stops.

    Brackets in strings are not counted.
    """
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        sign = match[0][:1]
        if sign in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest >= enough:
                break
        elif sign in b"]}":
            depth -= 1
    return deepest


def value_depth(value: Any) -> int:
    """How deep dictionaries and lists nest in `value`, counted without recursion."""
    deepest = 0
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth + 1)
            todo.extend((child, depth + 1) for child in (item.values() if isinstance(item, dict) else item))
    return deepest


def _read(path: Path, max_bytes: int, error: type[UserError]) -> bytes:
    with open(path, "rb") as file:
        data = file.read(min(max_bytes, path.stat().st_size) + 1)  # so much memory is taken, whatever there is
    if len(data) > max_bytes:
        raise error(f"expected at most {in_words(max_bytes)} in {path}, got {in_words(path.stat().st_size)}.")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
