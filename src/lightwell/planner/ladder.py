"""A ladder of models of growing size, around what the user fixed, and what can be said of each before it is tried."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightwell.config.check import Problems
from lightwell.config.run import RunConfig, changed
from lightwell.errors import ConfigError
from lightwell.model.count import flops_per_token, parameters_of_blocks
from lightwell.planner.predict import predict_bits_per_byte
from lightwell.planner.text import TextStatistics


@dataclass(frozen=True)
class Rung:
    """A model of the ladder, and the batch that suits it."""

    emb_dim: int
    n_layers: int
    context_length: int
    batch_size: int


# Wide and shallow at first: what two layers can learn comes long before what more would add, and two can copy. Long
# contexts, not large batches: more to copy from, and as many tokens a step (LOG.md).
LADDER = (
    Rung(64, 2, 128, 16),
    Rung(128, 2, 512, 8),
    Rung(192, 2, 512, 8),
    Rung(256, 2, 512, 8),
    Rung(256, 2, 1024, 4),
    Rung(256, 3, 1024, 4),
    Rung(384, 3, 1024, 4),
    Rung(512, 3, 1024, 4),
    Rung(640, 4, 1024, 8),
    Rung(640, 8, 1024, 16),
    Rung(768, 14, 1024, 64),
)
HEAD_DIM = {"modern": 128, "gpt2": 64}  # numbers of a head, where the heads are left open


def rungs_for(config: RunConfig, vocab_size: int, processes: int = 1) -> dict[str, RunConfig]:
    """The rungs of the ladder around what is fixed, smallest first. Of those that become the same model the batch of
    the one nearest in size: predictions know nothing of batches. ConfigError if none fits."""
    rungs: list[tuple[float, RunConfig]] = []
    problems: Problems = []
    for rung in LADDER:
        try:
            made = complete(config, rung, vocab_size, processes)
        except ConfigError as error:
            problems = error.problems
            continue
        sizes = made.model.complete()
        away = abs(math.log(rung.n_layers * rung.emb_dim**2 / (sizes.n_layers * sizes.emb_dim**2)))
        same = next((place for place, (_, other) in enumerate(rungs) if other.model == made.model), None)
        if same is None:
            rungs.append((away, made))
        elif away < rungs[same][0]:
            rungs[same] = away, made
    if not rungs:
        raise ConfigError(problems, "Fix fewer sizes, or all of them.")
    return {name_of(made): made for _, made in rungs}


def complete(config: RunConfig, rung: Rung, vocab_size: int | None, processes: int = 1) -> RunConfig:
    """Fill in what the config leaves open with the rung's numbers, around what is fixed. A batch is one that so many
    processes, and micro-batches that were fixed, can share."""
    given = config.model
    sizes: dict[str, Any] = {key: getattr(rung, key) for key in given.missing() if key != "n_heads"}
    if "emb_dim" in sizes and given.n_heads is not None:
        sizes["emb_dim"] = max(1, round(rung.emb_dim / given.n_heads / 2)) * 2 * given.n_heads
    if given.n_heads is None:
        sizes["n_heads"] = heads_of(given.emb_dim or rung.emb_dim, given.family, given.n_kv_heads or 1)
    if given.tie_embeddings is None and (given.family == "modern" or config.train.init == "bigram"):
        sizes["tie_embeddings"] = False  # embeddings and head can then begin with counted pairs (LOG.md)
    unit = processes * (config.train.micro_batch_size or 1)
    rows = rung.batch_size * rung.context_length / (given.context_length or rung.context_length)
    train = {} if config.train.batch_size else {"batch_size": unit * max(1, round(rows / unit))}
    return changed(config, model=sizes | ({"vocab_size": vocab_size} if vocab_size else {}), train=train)


def heads_of(emb_dim: int, family: str = "modern", n_kv_heads: int = 1) -> int:
    """How many heads a model so wide has, if it is left open: a multiple of those of keys. Two at least, which copying
    takes; and wide ones, which can tell more tokens apart (LOG.md)."""
    most = max(2, n_kv_heads, emb_dim // HEAD_DIM[family])
    fitting = (n for n in range(most, 0, -1) if n % n_kv_heads == 0 and emb_dim % n == 0 and emb_dim // n % 2 == 0)
    return next(fitting, n_kv_heads)


def name_of(config: RunConfig) -> str:
    """Layers x width, as in "4 x 128", with the context and the batch."""
    model = config.model
    return f"{model.n_layers} x {model.emb_dim} at {model.context_length} x {config.train.batch_size}"


def tokens_per_step(config: RunConfig) -> int:
    assert config.train.batch_size is not None
    assert config.model.context_length is not None
    return config.train.batch_size * config.model.context_length


def guessed_seconds(config: RunConfig, peak: float) -> float:
    """Of a step, before any was made: products at 0.58 of the peak, a layer's other work with a token as long
    as 850,000 FLOPs of them, and a millisecond a layer. From 2 x 128 on within 3% of one another (LOG.md)."""
    model = config.model.complete()
    products = flops_per_token(model, model.context_length)["total"]
    flops = tokens_per_step(config) * (products + 0.85e6 * model.n_layers)
    return flops / (0.58 * peak) + 0.001 * model.n_layers


def predicted(config: RunConfig, tokens: int, text: TextStatistics) -> float:
    model = config.model.complete()
    return predict_bits_per_byte(parameters_of_blocks(model), max(1, tokens), text, model.context_length)
