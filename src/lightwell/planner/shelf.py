"""What each key of a config means, costs, and what doubling it does: counted, not by rule of thumb."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

from lightwell.config.run import parse
from lightwell.errors import ConfigError
from lightwell.model.count import flops_per_token, memory_bytes, parameters
from lightwell.show.units import count, size


def meanings(language: str = "en") -> dict[str, str]:
    """One sentence per key, by its dotted name."""
    return tomllib.loads((files("lightwell.planner") / "texts" / f"keys.{language}.toml").read_text(encoding="utf-8"))


def explain_keys(raw: dict[str, Any], language: str = "en") -> list[dict[str, Any]]:
    """A row per key of a preset: key, value, meaning, cost, doubled."""
    texts = meanings(language)
    rows = []
    for section, values in raw.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            rows.append({"key": name, "value": value, "meaning": texts[name]} | _effect(raw, section, key, value))
    return rows


def _figures(raw: dict[str, Any]) -> dict[str, float]:
    config = parse(raw)
    model = config.model.complete()
    rows = min(config.train.batch_size or 8, 8)
    memory = memory_bytes(model, rows, dtype_bytes=4, optimizer=config.optimizer.name)["total"]
    return {
        "parameters": parameters(model)["total"],
        "memory": memory,
        "flops": flops_per_token(model, model.context_length)["total"],
    }


def _effect(raw: dict[str, Any], section: str, key: str, value: Any) -> dict[str, str]:
    """What this key's share of the model is, and what doubling it would do to parameters, memory and FLOPs."""
    now = _figures(raw)
    cost = f"{count(now['parameters'])} parameters, {size(now['memory'])}, {count(now['flops'])}FLOP per token in all"
    if section != "model" or isinstance(value, str | bool) or not value:
        return {
            "cost": "nothing in parameters, memory or FLOPs" if section != "model" else cost,
            "doubled": "does not apply",
        }
    try:
        doubled = _figures({**raw, section: {**raw[section], key: 2 * value}})
    except ConfigError as error:
        return {"cost": cost, "doubled": f"not possible: {error.problems[0][1]}"}
    said = {"parameters": "parameters", "memory": "memory", "flops": "FLOPs per token"}
    changes = [f"{said[name]} x{doubled[name] / now[name]:.2f}" for name in now]
    return {"cost": cost, "doubled": ", ".join(changes)}
