"""Configs that are strict and frozen, and that report every problem at once.

`Strict` is the base of every config. Constructing one, or calling `problems`, checks each field by itself and then the
rules between fields for those that did parse, so one wrong key never hides another.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lightwell.errors import ConfigError

Problems = list[tuple[str, str]]


class Strict(BaseModel):
    """Frozen, no silent conversions ("12" is not 12), unknown keys refused. Raises ConfigError with every problem."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **raw: Any) -> None:
        found = problems(type(self), raw)
        if found:
            raise ConfigError(found)
        super().__init__(**raw)

    @classmethod
    def cross_checks(cls, values: dict[str, Any]) -> Problems:
        """Problems between fields, as (key, sentence). `values` holds only the fields that parsed."""
        return []


def problems(cls: type[Strict], raw: dict[str, Any], prefix: str = "") -> Problems:
    """Every problem of `raw` as a `cls`, as (dotted key, sentence); an empty list means that `cls(**raw)` works."""
    found: Problems = []
    values: dict[str, Any] = {}
    known = list(cls.model_fields)
    misspelled = {}  # the known key that an unknown one probably meant -> the unknown one
    for key in raw:
        if key not in known:
            near = nearest(key, known)
            misspelled[near] = key
            guess = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
            found.append((prefix + key, f"unknown key; {guess}"))
    for name, field in cls.model_fields.items():
        if name not in raw:
            if not field.is_required():
                values[name] = field.get_default(call_default_factory=True)
            elif name not in misspelled:
                found.append((prefix + name, "expected a value, got none"))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            if isinstance(raw[name], dict):
                found += problems(field.annotation, raw[name], prefix + name + ".")
            elif not isinstance(raw[name], field.annotation):
                found.append((prefix + name, f"expected a section [{name}] with keys, got {raw[name]!r}"))
        else:
            sentence = _wrong(cls, name, raw[name])
            if sentence:
                found.append((prefix + name, sentence))
            else:
                values[name] = raw[name]
    return found + [(prefix + key, sentence) for key, sentence in cls.cross_checks(values)]


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that a misspelled one most likely means, or None."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None


@cache
def _adapter(cls: type[Strict], name: str) -> TypeAdapter[Any]:
    field = cls.model_fields[name]
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def _wrong(cls: type[Strict], name: str, value: Any) -> str | None:
    """What is wrong with one field's value, as "expected ..., got ...", or None."""
    try:
        _adapter(cls, name).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        return f"expected {_expectation(first)}, got {first['input']!r}"
    return None


def _expectation(error: Any) -> str:
    limits = error.get("ctx", {})
    sentences = {
        "greater_than": "more than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a text",
        "list_type": "a list",
    }
    text = sentences.get(error["type"], error["msg"].removeprefix("Input should be "))
    return text.format(**{key: f"{value:g}" if isinstance(value, float) else value for key, value in limits.items()})
