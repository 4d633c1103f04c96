"""Choose what the user left open: size, context, batch and vocabulary for the minutes and the text.

The ladder holds models that were tried; for each, its time per step is measured on this machine and its held-out bits
per byte predicted by `predict.py`. The lowest prediction wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightwell.config.run import RunConfig, changed


@dataclass(frozen=True)
class Rung:
    """A model of the ladder, and the batch that suits it."""

    emb_dim: int
    n_layers: int
    n_heads: int
    context_length: int
    batch_size: int


LADDER = (
    Rung(64, 2, 2, 64, 16),
    Rung(96, 3, 3, 64, 16),
    Rung(128, 4, 4, 64, 16),
    Rung(192, 4, 3, 128, 16),
    Rung(256, 6, 4, 128, 16),
    Rung(384, 6, 6, 256, 16),
    Rung(512, 8, 8, 256, 32),
    Rung(768, 12, 12, 512, 32),
)


@dataclass
class Choice:
    """What was chosen: a config with nothing left open, the reasons in sentences, and what is expected."""

    config: RunConfig
    reasons: list[str] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)


def choose_vocab_size(text_bytes: int, seconds: float | None) -> int:
    """A vocabulary that the text and the time can fill: each token must be seen often enough to be learned."""
    for size, enough_bytes, enough_seconds in (
        (8192, 50e6, 3600),
        (4096, 20e6, 1200),
        (2048, 4e6, 240),
        (1024, 4e5, 30),
    ):
        if text_bytes >= enough_bytes and (seconds is None or seconds >= enough_seconds):
            return size
    return 512


def choose_rung(seconds: float | None, flops: float) -> Rung:
    """The rung whose training the time suits, from the matrix products that the machine does in it."""
    budget = (seconds or 600.0) * flops
    best = LADDER[0]
    for rung in LADDER:
        parameters = 12 * rung.n_layers * rung.emb_dim**2
        tokens = budget * 0.25 / (6 * parameters)
        if tokens >= 15 * parameters:
            best = rung
    return best


def complete(config: RunConfig, rung: Rung, text_bytes: int) -> RunConfig:
    """Fill in what the config leaves open with the rung's numbers."""
    model = {key: value for key, value in vars_of(rung).items() if key != "batch_size"}
    given = config.model
    open_keys = set(given.missing())
    sizes = {key: value for key, value in model.items() if key in open_keys}
    if "n_heads" in open_keys and given.emb_dim is not None:
        sizes["n_heads"] = next(n for n in range(max(1, given.emb_dim // 64), 0, -1) if given.emb_dim % n == 0)
    elif "emb_dim" in open_keys and given.n_heads is not None:
        sizes["emb_dim"] = max(1, round(rung.emb_dim / given.n_heads / 2)) * 2 * given.n_heads
    train = {} if config.train.batch_size else {"batch_size": rung.batch_size}
    return changed(config, model=sizes, train=train)


def vars_of(rung: Rung) -> dict[str, int]:
    return {name: getattr(rung, name) for name in Rung.__dataclass_fields__}
