"""What each key of a config means, costs, and what doubling it does: counted, not by rule of thumb."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

from lightwell.config.run import RunConfig, parse
from lightwell.errors import ConfigError
from lightwell.model.count import flops_per_token, memory_bytes, parameters
from lightwell.show.units import count, size

ROWS = 8  # sequences whose memory is counted where the config leaves it to the planner
SIZES = {
    *(("model", key) for key in ("vocab_size", "context_length", "emb_dim", "n_layers", "n_heads", "n_kv_heads")),
    *(("model", key) for key in ("head_dim", "hidden_dim", "qkv_bias", "drop_rate", "tie_embeddings")),
    *(("train", key) for key in ("batch_size", "micro_batch_size")),
}  # the keys that change parameters, memory or FLOPs; families and optimizers are compared by `lightwell plan`


def meanings(language: str = "en") -> dict[str, str]:
    """One sentence per key, by its dotted name."""
    return tomllib.loads((files("lightwell.planner") / "texts" / f"keys.{language}.toml").read_text(encoding="utf-8"))


def all_keys(language: str = "en") -> list[dict[str, Any]]:
    """A row per key that a config may have: key, what it is if it is left out (None: decided for the run), meaning."""
    texts, rows = meanings(language), []
    for section, values in RunConfig().model_dump().items():
        rows += [
            {"key": f"{section}.{key}", "value": value, "meaning": texts[f"{section}.{key}"]}
            for key, value in values.items()
        ]
    return rows


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
    rows = config.train.micro_batch_size or min(config.train.batch_size or ROWS, ROWS)
    memory = memory_bytes(model, rows, dtype_bytes=4, optimizer=config.optimizer.name)["total"]
    return {
        "parameters": parameters(model)["total"],
        "memory": memory,
        "FLOPs per token": flops_per_token(model, model.context_length)["total"],
    }


def _effect(raw: dict[str, Any], section: str, key: str, value: Any) -> dict[str, str]:
    """What this key costs, against its smallest value, and what doubling it would do to the same figures."""
    if isinstance(value, str | list) or (section, key) not in SIZES:
        return {"cost": "nothing in parameters, memory or FLOPs", "doubled": "does not apply"}

    def figures(instead: Any) -> dict[str, float]:
        return _figures({**raw, section: {**raw[section], key: instead}})

    now, least = _figures(raw), _smallest(figures, value)
    costs = ", ".join(
        f"{_said(name, now[name] - least[name])} of {_said(name, now[name])} {name}"
        for name in now
        if now[name] > least[name]
    )
    if isinstance(value, bool):
        return {"cost": costs or "nothing", "doubled": "does not apply"}
    try:
        doubled = figures(2 * value)
    except ConfigError as error:
        return {"cost": costs or "nothing", "doubled": f"not possible: {error.problems[0][1]}"}
    changes = ", ".join(f"{name} x{doubled[name] / now[name]:.2f}" for name in now if doubled[name] != now[name])
    return {"cost": costs or "nothing in parameters, memory or FLOPs", "doubled": changes or "changes none of them"}


def _smallest(figures: Callable[[Any], dict[str, float]], value: Any) -> dict[str, float]:
    """The figures at the smallest value that makes a model."""
    for least in [not value] if isinstance(value, bool) else [0.0] if isinstance(value, float) else range(1, value):
        with suppress(ConfigError):
            return figures(least)
    return figures(value)


def _said(name: str, value: float) -> str:
    return size(value) if name == "memory" else count(value)
