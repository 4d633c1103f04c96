"""Choose what the user left open: size, context, batch and vocabulary, for the minutes and the text.

A ladder holds models of growing size. Some of its rungs, around the one that the machine's matrix-product peak
suggests, are timed on this machine with real steps; for each, `predict.py` says what held-out bits per byte to expect
from so many tokens. The lowest wins. What the user fixed stays fixed on every rung.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lightwell.config.check import Problems
from lightwell.config.run import RunConfig, changed
from lightwell.errors import ConfigError
from lightwell.model.count import memory_bytes, parameters
from lightwell.planner.predict import Text, predict_bits_per_byte
from lightwell.planner.step_time import measure_step_seconds
from lightwell.runtime.device import Device
from lightwell.runtime.memory import free_bytes

TRIAL_SHARE, TRIAL_SECONDS = 0.05, 30.0  # of the budget, for timing candidates: whichever is less
USEFUL_SHARE = 0.9  # of the time is training; the rest is preparation, evaluation, saving
LEAST_READ = 4_000_000  # bytes, however little the machine seems to do just now
READ_AHEAD = 1.5  # times the text that the budget can consume is prepared


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
    Rung(256, 5, 4, 128, 16),
    Rung(320, 6, 5, 256, 16),
    Rung(448, 8, 7, 256, 32),
    Rung(640, 10, 10, 512, 32),
    Rung(768, 14, 12, 1024, 64),
)


@dataclass
class Choice:
    """A config with nothing left open, the reasons in sentences, and what is expected (stored with the run)."""

    config: RunConfig
    reasons: list[str] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)


def choose(
    config: RunConfig, vocab_size: int, text: Text, device: Device, peak: float, seconds: float | None
) -> Choice:
    """Fill in what `config` leaves open. `seconds`: left for training (None: a budget of steps or tokens).

    Raises ConfigError if no rung fits what the user fixed.
    """
    rungs = {} if config.model.missing() or not config.train.batch_size else {"as asked": config}
    for rung in LADDER if not rungs else ():
        try:
            rungs[f"{rung.n_layers} x {rung.emb_dim}"] = complete(config, rung, vocab_size)
        except ConfigError as error:
            problems: Problems = error.problems
    if not rungs:
        raise ConfigError(problems, "Fix fewer sizes, or all of them.")
    if len(rungs) == 1 or seconds is None:
        name = next(iter(rungs)) if len(rungs) == 1 else list(rungs)[min(2, len(rungs) - 1)]
        return Choice(rungs[name])
    timed = time_candidates(rungs, device, peak, seconds)
    useful = USEFUL_SHARE * seconds
    predicted: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for name, per_step in timed.items():
        candidate = rungs[name]
        tokens[name] = int(useful / per_step * tokens_per_step(candidate))
        size = parameters(candidate.model.complete(vocab_size))["total"]
        predicted[name] = predict_bits_per_byte(size, tokens[name], text)
    lowest = min(predicted.values())
    best = next(name for name, bits in predicted.items() if bits <= 1.005 * lowest)  # the smaller one where it is close
    rate = tokens_per_step(rungs[best]) / timed[best]
    said = ", ".join(f"{name} {bits:.2f}" for name, bits in predicted.items())
    epochs = tokens[best] / max(1, text.tokens)
    return Choice(
        rungs[best],
        [
            f"Measured: {peak / 1e9:,.0f} GFLOP/s of matrix products, {rate:,.0f} tokens/s for the chosen model.",
            f"Predicted held-out bits per byte (layers x width): {said}.",
            f"Chosen: {best}, {tokens[best] / 1e6:.1f} M tokens, {epochs:.1f} times the text.",
        ],
        {"bits_per_byte": predicted[best], "tokens": tokens[best], "candidates": predicted},
    )


def time_candidates(rungs: dict[str, RunConfig], device: Device, peak: float, seconds: float) -> dict[str, float]:
    """Seconds per step of the rungs around the likeliest, measured for as long as the budget allows."""
    deadline = time.perf_counter() + min(TRIAL_SHARE * seconds, TRIAL_SECONDS)
    names = list(rungs)
    start = names.index(likeliest(rungs, peak, seconds))
    order = sorted(range(len(names)), key=lambda place: (abs(place - start), place))
    timed: dict[str, float] = {}
    for place in order:
        if timed and time.perf_counter() > deadline:
            break
        found = measure_step_seconds(rungs[names[place]], device, rounds=3, limit=min(5.0, TRIAL_SHARE * seconds / 2))
        if found is not None:
            timed[names[place]] = found
    return dict(sorted(timed.items(), key=lambda item: names.index(item[0])))


def likeliest(rungs: dict[str, RunConfig], peak: float, seconds: float) -> str:
    """The largest rung that about 15 tokens per parameter are left for, at a fifth of the peak; memory permitting."""
    best = next(iter(rungs))
    free = free_bytes()
    for name, config in rungs.items():
        model = config.model.complete(config.model.vocab_size or 1024)
        size = parameters(model)["total"]
        tokens = seconds * 0.2 * peak / (6 * size)
        needed = memory_bytes(model, config.train.batch_size or 1, dtype_bytes=4, optimizer=config.optimizer.name)
        if tokens >= 15 * size and (free is None or needed["total"] < 0.7 * free):
            best = name
    return best


def tokens_per_step(config: RunConfig) -> int:
    assert config.train.batch_size is not None
    assert config.model.context_length is not None
    return config.train.batch_size * config.model.context_length


def choose_vocab_size(text_bytes: int, seconds: float | None) -> int:
    """A vocabulary that the text and the time can fill: each token must be seen often enough to be learned."""
    for size, enough_bytes, enough_seconds in ((8192, 5e7, 3600), (4096, 2e7, 1200), (2048, 4e6, 240), (1024, 4e5, 30)):
        if text_bytes >= enough_bytes and (seconds is None or seconds >= enough_seconds):
            return size
    return 512


def bytes_to_read(text_bytes: int, seconds: float | None, peak: float) -> int | None:
    """How much of a large text the budget can consume, times 1.5; None if that is all of it."""
    if seconds is None:
        return None
    fastest = 0.3 * peak / (6 * 1_000_000)  # tokens/s of a model of a million parameters
    most = max(LEAST_READ, int(READ_AHEAD * 4 * seconds * min(fastest, 200_000)))  # four bytes a token
    return most if most < text_bytes else None


def complete(config: RunConfig, rung: Rung, vocab_size: int | None) -> RunConfig:
    """Fill in what the config leaves open with the rung's numbers, around what is fixed."""
    given = config.model
    sizes: dict[str, Any] = {key: getattr(rung, key) for key in given.missing()}
    if "n_heads" in sizes and given.emb_dim is not None:
        heads = range(max(1, given.emb_dim // 64), 0, -1)
        sizes["n_heads"] = next(n for n in heads if given.emb_dim % n == 0 and given.emb_dim // n % 2 == 0)
    elif "emb_dim" in sizes and given.n_heads is not None:
        sizes["emb_dim"] = max(1, round(rung.emb_dim / given.n_heads / 2)) * 2 * given.n_heads
    train = {} if config.train.batch_size else {"batch_size": rung.batch_size}
    return changed(config, model=sizes | ({"vocab_size": vocab_size} if vocab_size else {}), train=train)
