"""Choose what the user left open, sizes, context, batch and rates, for the minutes and the text.

A ladder (ladder.py) holds models of growing size. The rung that the machine's matrix-product peak suggests is timed on
this machine with real steps, then its neighbours (climb.py), on towards where `predict.py` expects fewer held-out bits
per byte; the lowest wins. What the user fixed stays fixed on every rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lightwell.config.run import RunConfig, changed
from lightwell.model.count import parameters
from lightwell.planner.climb import MOST_EPOCHS, Candidate, climb, most_tokens, trial_seconds
from lightwell.planner.compiling import try_compile
from lightwell.planner.fit import free_memory, share_of, split_to_fit, tried_in_memory, with_rows
from lightwell.planner.ladder import predicted, rungs_for, tokens_per_step
from lightwell.planner.predict import LEAST_LONG
from lightwell.planner.step_time import measure_step_seconds
from lightwell.planner.text import COUNTED, MUCH_OVERLAP, PASSAGE, TextStatistics
from lightwell.runtime.device import Device
from lightwell.show.units import count, plural
from lightwell.training.rates import MUON, decay_beside_muon, of_a_large_step, rate_beside_muon

LEAST_STEPS = 100  # in which a model can begin to learn
LEAST_KEPT = 0.6  # of the tokens of larger batches: a smaller batch with less is mostly the update, and not taken
LEAST_CONTEXT, LEAST_PREDICTED = 128, 300_000  # tokens of a window and of a run that predictions are for
LARGE_STEP, MANY_STEPS = 4096, 500  # tokens: larger steps are for texts that have many of them
SHORT_WINDOW = 512  # tokens, at most, for a short text
LONG_RUN = 10**9  # tokens of a run after which rates change no more


@dataclass
class Choice:
    """A config with nothing left open, the reasons in sentences, by what they are about, and what is expected (stored
    with the run)."""

    config: RunConfig
    said: dict[str, str] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        return list(self.said.values())


def choose(
    config: RunConfig,
    vocab_size: int,
    text: TextStatistics,
    device: Device,
    peak: float,
    seconds: float | None,
    processes: int = 1,
    unpredicted: str = "",
) -> Choice:
    """Fill in what `config` leaves open. `seconds`: left for training (None: a budget of steps or tokens). `processes`
    will share each batch equally. `unpredicted`: a sentence on why nothing can be predicted, where that is so.

    Raises ConfigError if no rung fits what the user fixed.
    """
    possible = that_suit(rungs_for(config, vocab_size, processes), text)
    in_memory = {name: split_to_fit(rung, free_memory(device), device, processes) for name, rung in possible.items()}
    rungs = {name: rung for name, rung in in_memory.items() if rung} or dict(list(possible.items())[:1])
    if seconds is None:
        name, chosen = list(rungs.items())[min(2, len(rungs) - 1)]
        tokens = config.budget.tokens or (config.budget.steps or 0) * tokens_per_step(chosen)
        bits = predicted(chosen, tokens, text)
        unpredicted = unpredicted or beyond_the_law(chosen)
        expected = {} if unpredicted else {"bits_per_byte": bits, "candidates": {name: bits}}
        said = of_overlap(text) | ({"unpredicted": unpredicted} if unpredicted else {})
        return Choice(with_rates(chosen, tokens, text.tokens), said, {"tokens": tokens} | expected)
    tried = climb(rungs, text, device, peak, seconds, processes)
    if not tried:  # too large to try, mostly a single model that the user fixed
        only = with_rates(next(iter(rungs.values())), LONG_RUN, text.tokens)
        return Choice(only, {"measured": "Nothing was measured: a step does not fit into the free memory."})
    best = min((candidate for candidate in tried if candidate.timed), key=lambda candidate: candidate.bits_per_byte)
    if config.train.batch_size is None:
        trial = partial(measure_step_seconds, device=device, rounds=2, limit=trial_seconds(seconds) / 4)
        unit = processes * (config.train.micro_batch_size or 1)
        best = with_steps_enough(best, text, seconds, lambda smaller: trial(share_of(smaller, processes)), unit)
    if processes == 1 and config.train.micro_batch_size is None:
        proven = tried_in_memory(best.config, device, best.step_seconds, trial_seconds(seconds))
        best = replace(best, config=proven)
    compiled = try_compile(share_of(best.config, processes), device, best.step_seconds, seconds)
    if compiled.pays:
        best = Candidate.of(best.config, compiled.step_seconds, text, seconds)
    unpredicted = unpredicted or beyond_the_law(best.config, None if text.tokens < LEAST_LONG else best.tokens)
    expected = {"bits_per_byte": best.bits_per_byte, "candidates": {c.name: c.bits_per_byte for c in tried}}
    return Choice(
        changed(
            with_rates(best.config, best.tokens, text.tokens),
            budget={"most_tokens": last_token(best, text)},
            runtime={"compile": compiled.pays},
        ),
        of_overlap(text)
        | reasons(best, tried, len(rungs), list(possible)[len(rungs) :], text, peak, unpredicted)
        | {f"compiled {number}": reason for number, reason in enumerate(compiled.reasons, start=1)},
        {"tokens": best.tokens, "step_seconds": best.step_seconds} | ({} if unpredicted else expected),
    )


def beyond_the_law(config: RunConfig, tokens: int | None = None) -> str:
    """A sentence on what predictions know nothing of: another recipe than that of the runs behind the law, shorter
    windows, hardly any tokens of a text that is not short. Empty if there is nothing of that."""
    given = {"model.family": config.model.family, "optimizer.name": config.optimizer.name}
    others = [f"{key} = {value}" for key, value in given.items() if value not in ("modern", "muon")]
    if config.schedule.name != "wsd":
        others.append(f"schedule.name = {config.schedule.name}")
    if (config.model.context_length or 0) < LEAST_CONTEXT:
        others.append(f"windows of fewer than {LEAST_CONTEXT} tokens")
    if tokens is not None and tokens < LEAST_PREDICTED:
        others.append(f"fewer than {LEAST_PREDICTED:,} tokens")
    return f"Nothing is predicted of {' and '.join(others)}: too little is known of that." if others else ""


def of_overlap(text: TextStatistics) -> dict[str, str]:
    """A sentence on held-out text that is no secret, where there is much of it."""
    if text.overlap <= MUCH_OVERLAP:
        return {}
    at_least = "At least " if text.tokens > COUNTED else ""
    return {
        "overlap": f"{at_least}{text.overlap:.0%} of the held-out text stands word for word in the training text too,"
        f" in passages of {PASSAGE} tokens and more: of new text expect more bits per byte than the held-out figures"
        " say."
    }


def that_suit(rungs: dict[str, RunConfig], text: TextStatistics) -> dict[str, RunConfig]:
    """The rungs that suit a text: of a short one long windows are too few, and it does better without (LOG.md); and
    large batches would be few steps, however often it is gone through. All of them, where none does."""

    def suits(rung: RunConfig) -> bool:
        per_step, steps = tokens_per_step(rung), most_tokens(rung, text) / tokens_per_step(rung)
        short_enough = text.tokens >= LEAST_LONG or (rung.model.context_length or 0) <= SHORT_WINDOW
        return short_enough and (per_step <= LARGE_STEP or steps >= MANY_STEPS)

    return {name: rung for name, rung in rungs.items() if suits(rung)} or rungs


def with_rates(config: RunConfig, tokens: int, unique: float) -> RunConfig:
    """With Muon's rate, AdamW's beside it and the weight decay for a run of so many tokens, `unique` of them different,
    where they are open. Endlessly many (math.inf): nothing decays."""
    given = config.optimizer
    if given.name != "muon":
        return config
    larger = of_a_large_step(tokens_per_step(config)) if config.train.batch_size else 1.0
    rate, muon, decay = given.learning_rate, given.muon_learning_rate, given.weight_decay
    if rate is None:
        rate = larger * rate_beside_muon(config.model.complete().emb_dim, tokens, unique)
    if muon is None and larger > 1:
        muon = larger * MUON
    if decay is None:
        steps_of_a_pass = unique if math.isinf(unique) else unique / tokens_per_step(config)
        decay = decay_beside_muon(steps_of_a_pass, muon)
    return changed(config, optimizer={"learning_rate": rate, "muon_learning_rate": muon, "weight_decay": decay})


def with_steps_enough(
    best: Candidate,
    text: TextStatistics,
    seconds: float,
    measure: Callable[[RunConfig], float | None],
    unit: int = 1,
) -> Candidate:
    """A smaller batch, in multiples of `unit`, where the model is so large for the time that there would be hardly any
    steps; but none so small that most of a step is the update, by what `measure` says that a step of it takes."""
    batch_size = best.config.train.batch_size or 1
    steps = best.tokens / tokens_per_step(best.config)
    rows = max(unit, int(batch_size * steps / LEAST_STEPS) // unit * unit)
    micro = best.config.train.micro_batch_size or batch_size  # as much as fits into memory
    taken = measure(with_rows(best.config, rows, micro)) if rows < batch_size else None
    if taken is None:
        return best
    each, fewest = (best.step_seconds - taken) / (batch_size - rows), rows

    def cut(rows: int) -> Candidate:
        """A step's time is a line over its sequences."""
        return Candidate.of(with_rows(best.config, rows, micro), taken + each * (rows - fewest), text, seconds)

    while rows < batch_size and cut(rows).tokens < LEAST_KEPT * best.tokens:
        rows *= 2
    return cut(rows) if rows < batch_size else best


def last_token(best: Candidate, text: TextStatistics) -> int:
    """After how many tokens the run ends though there are minutes left. Where the minutes are what ends it, a faster
    run than expected may go on: weights fade by the pass, so that this does no harm, only little good (LOG.md)."""
    most, optimizer = most_tokens(best.config, text), best.config.optimizer
    fades = optimizer.name == "muon" and optimizer.weight_decay is None  # `with_rates` comes later
    return 2 * most if best.tokens < most and fades and not best.config.budget.most_tokens else most


def reasons(
    best: Candidate,
    tried: list[Candidate],
    possible: int,
    too_large: list[str],
    text: TextStatistics,
    peak: float,
    unpredicted: str = "",
) -> dict[str, str]:
    """A few lines: what was measured, what was predicted for the neighbours, what was chosen and why."""
    rate = tokens_per_step(best.config) / best.step_seconds
    epochs = best.tokens / max(1, text.tokens)
    said = {
        "measured": f"Measured: {peak / 1e9:,.0f} GFLOP/s of matrix products; a step of the chosen model takes"
        f" {1000 * best.step_seconds:,.0f} ms, {rate:,.0f} tokens/s."
    }
    if unpredicted:
        said["unpredicted"] = unpredicted
    elif len(tried) > 1:
        each = "; ".join(
            f"{c.name}: {c.bits_per_byte:.3f} after {c.tokens / 1e6:.1f} M tokens{'' if c.timed else ' (not timed)'}"
            for c in tried
        )
        said["predicted"] = f"Predicted held-out bits per byte (layers x width at context x batch): {each}."
    alone = "as asked" if possible == 1 else "the only one that could be tried"
    why = "the lowest prediction" if len(tried) > 1 else alone
    if unpredicted and len(tried) > 1:
        why = "which would be best of modern models with Muon"
    if len(tried) > 1 and any(c.bits_per_byte < best.bits_per_byte for c in tried):
        why += " of those that there was time for"
    size, steps = parameters(best.config.model.complete())["total"], best.tokens // tokens_per_step(best.config)
    bits = "" if unpredicted else f"{best.bits_per_byte:.3f} bits per byte expected from "
    said["chosen"] = (
        f"Chosen: {best.name}, {why}: {size:,} parameters, {bits}{count(best.tokens)} tokens,"
        f" {epochs:.1f} times the text."
    )
    if steps < LEAST_STEPS / 2:
        said["few_steps"] = (
            f"That is about {plural(max(1, steps), 'step')}, in which hardly anything is learned: a smaller model, or"
            " more minutes, would come further."
        )
    if best.tokens == most_tokens(best.config, text) and not best.config.budget.most_tokens:
        said["short"] = (
            f"The text is short: to go through it more than {MOST_EPOCHS} times gains little, so this"
            " ends before the minutes are over (--set budget.most_tokens=N to go on)."
        )
    if too_large and best.config.model == tried[-1].config.model:
        said["too_large"] = f"Left out, since a step needs more than the free memory: {', '.join(too_large)}."
    return said
