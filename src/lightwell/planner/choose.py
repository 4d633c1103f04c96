"""Choose what the user left open, sizes, context, batch and rates, for the minutes and the text.

A ladder (ladder.py) holds models of growing size. The rung that the machine's matrix-product peak suggests is timed on
this machine with real steps, then its neighbours (climb.py), on towards where `predict.py` expects fewer held-out bits
per byte; the lowest wins. What the user fixed stays fixed on every rung.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from lightwell.config.run import RunConfig, changed
from lightwell.model.count import parameters
from lightwell.planner.climb import MOST_EPOCHS, Candidate, candidate, climb, most_tokens, trial_seconds
from lightwell.planner.compiling import try_compile
from lightwell.planner.fit import free_memory, share_of, split_to_fit, tried_in_memory, with_rows
from lightwell.planner.ladder import candidates, name_of, predicted, tokens_per_step
from lightwell.planner.predict import LEAST_LONG
from lightwell.planner.text import COUNTED, MUCH_OVERLAP, PASSAGE, Text
from lightwell.runtime.device import Device
from lightwell.training.rates import decay_beside_muon, rate_beside_muon

LEAST_STEPS = 100  # in which a model can begin to learn, where the batch is open
SHORT_WINDOW = 512  # tokens, at most, for a short text
LONG_RUN = 10**9  # tokens of a run after which rates change no more


@dataclass
class Choice:
    """A config with nothing left open, the reasons in sentences, and what is expected (stored with the run)."""

    config: RunConfig
    reasons: list[str] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)


def choose(
    config: RunConfig,
    vocab_size: int,
    text: Text,
    device: Device,
    peak: float,
    seconds: float | None,
    processes: int = 1,
) -> Choice:
    """Fill in what `config` leaves open. `seconds`: left for training (None: a budget of steps or tokens). `processes`
    will share each batch equally.

    Raises ConfigError if no rung fits what the user fixed.
    """
    possible = of_short_windows(candidates(config, vocab_size, processes), text)
    in_memory = {name: split_to_fit(rung, free_memory(device), device, processes) for name, rung in possible.items()}
    rungs = {name: rung for name, rung in in_memory.items() if rung} or dict(list(possible.items())[:1])
    if seconds is None:
        name, chosen = list(rungs.items())[min(2, len(rungs) - 1)]
        tokens = config.budget.tokens or (config.budget.steps or 0) * tokens_per_step(chosen)
        bits = predicted(chosen, tokens, text)
        expected = {"bits_per_byte": bits, "tokens": tokens, "candidates": {name: bits}}
        return Choice(with_rates(chosen, tokens, text.tokens), of_overlap(text), expected)
    tried = climb(rungs, text, device, peak, seconds, processes)
    if not tried:  # too large to try, mostly a single model that the user fixed
        only = with_rates(next(iter(rungs.values())), LONG_RUN, text.tokens)
        return Choice(only, ["Nothing was measured: a step does not fit into the free memory."])
    timed = [candidate for candidate in tried if candidate.timed]
    best = min(timed, key=lambda candidate: candidate.bits_per_byte)
    if config.train.batch_size is None:
        best = with_steps_enough(best, text, seconds, processes * (config.train.micro_batch_size or 1))
    if processes == 1 and config.train.micro_batch_size is None:
        proven = tried_in_memory(best.config, device, best.step_seconds, trial_seconds(seconds))
        best = replace(best, config=proven)
    compiled = try_compile(share_of(best.config, processes), device, best.step_seconds, seconds)
    if compiled.pays:
        best = candidate(best.name, best.config, compiled.step_seconds, text, seconds)
    return Choice(
        changed(
            with_rates(best.config, best.tokens, text.tokens),
            budget={"most_tokens": last_token(best, text)},
            runtime={"compile": compiled.pays},
        ),
        [
            *of_overlap(text),
            *reasons(best, tried, len(rungs), list(possible)[len(rungs) :], text, peak),
            *compiled.reasons,
        ],
        {
            "bits_per_byte": best.bits_per_byte,
            "tokens": best.tokens,
            "step_seconds": best.step_seconds,
            "candidates": {c.name: c.bits_per_byte for c in tried},
        },
    )


def of_overlap(text: Text) -> list[str]:
    """A sentence on held-out text that is no secret, where there is much of it."""
    if text.overlap <= MUCH_OVERLAP:
        return []
    at_least = "At least " if text.tokens > COUNTED else ""
    return [
        f"{at_least}{text.overlap:.0%} of the held-out text stands word for word in the training text too, in passages"
        f" of {PASSAGE} tokens and more: of new text expect more bits per byte than the held-out figures say."
    ]


def of_short_windows(rungs: dict[str, RunConfig], text: Text) -> dict[str, RunConfig]:
    """The rungs that suit a text: of a short one long windows are too few, and it does better without (LOG.md)."""
    if text.tokens >= LEAST_LONG:
        return rungs
    return {name: rung for name, rung in rungs.items() if (rung.model.context_length or 0) <= SHORT_WINDOW} or rungs


def with_rates(config: RunConfig, tokens: int, unique: float) -> RunConfig:
    """With AdamW's rate beside Muon and the weight decay for a run of so many tokens, `unique` of them different, where
    they are open. Endlessly many (math.inf): nothing decays."""
    given = config.optimizer
    if given.name != "muon":
        return config
    rate, decay = given.learning_rate, given.weight_decay
    if rate is None:
        rate = rate_beside_muon(config.model.complete().emb_dim, tokens, unique)
    if decay is None:
        steps_of_a_pass = unique if math.isinf(unique) else unique / tokens_per_step(config)
        decay = decay_beside_muon(steps_of_a_pass, given.muon_learning_rate)
    return changed(config, optimizer={"learning_rate": rate, "weight_decay": decay})


def with_steps_enough(best: Candidate, text: Text, seconds: float, unit: int = 1) -> Candidate:
    """A smaller batch, in multiples of `unit`, where the model is so large for the time that there would be hardly any
    steps."""
    batch_size = best.config.train.batch_size or 1
    steps = best.tokens / tokens_per_step(best.config)
    rows = max(unit, int(batch_size * steps / LEAST_STEPS) // unit * unit)
    if rows >= batch_size:
        return best
    micro = best.config.train.micro_batch_size or batch_size  # as much as fits into memory
    config = with_rows(best.config, rows, micro)
    return candidate(name_of(config), config, best.step_seconds * rows / batch_size, text, seconds)


def last_token(best: Candidate, text: Text) -> int:
    """After how many tokens the run ends though there are minutes left. Where the minutes are what ends it, a faster
    run than expected may go on: weights fade by the pass, so that this does no harm, only little good (LOG.md)."""
    most, optimizer = most_tokens(best.config, text), best.config.optimizer
    fades = optimizer.name == "muon" and optimizer.weight_decay is None  # `with_rates` comes later
    return 2 * most if best.tokens < most and fades and not best.config.budget.most_tokens else most


def reasons(
    best: Candidate, tried: list[Candidate], possible: int, too_large: list[str], text: Text, peak: float
) -> list[str]:
    """A few lines: what was measured, what was predicted for the neighbours, what was chosen and why."""
    rate = tokens_per_step(best.config) / best.step_seconds
    epochs = best.tokens / max(1, text.tokens)
    lines = [
        f"Measured: {peak / 1e9:,.0f} GFLOP/s of matrix products; a step of the chosen model takes"
        f" {1000 * best.step_seconds:,.0f} ms, {rate:,.0f} tokens/s."
    ]
    if len(tried) > 1:
        said = "; ".join(
            f"{c.name}: {c.bits_per_byte:.3f} after {c.tokens / 1e6:.1f} M tokens{'' if c.timed else ' (not timed)'}"
            for c in tried
        )
        lines.append(f"Predicted held-out bits per byte (layers x width at context x batch): {said}.")
    alone = "as asked" if possible == 1 else "the only one that could be tried"
    why = "the lowest prediction" if len(tried) > 1 else alone
    if any(c.bits_per_byte < best.bits_per_byte for c in tried):
        why += " of those that there was time for"
    size = parameters(best.config.model.complete())["total"]
    lines.append(
        f"Chosen: {best.name}, {why}: {size:,} parameters, {best.bits_per_byte:.3f} bits per byte expected from"
        f" {best.tokens / 1e6:.1f} M tokens, {epochs:.1f} times the text."
    )
    if best.tokens == most_tokens(best.config, text) and not best.config.budget.most_tokens:
        lines.append(
            f"The text is short: to go through it more than {MOST_EPOCHS} times gains little, so this"
            " ends before the minutes are over (--set budget.most_tokens=N to go on)."
        )
    if too_large and best.config.model == tried[-1].config.model:
        lines.append(f"Left out, since a step needs more than the free memory: {', '.join(too_large)}.")
    return lines
