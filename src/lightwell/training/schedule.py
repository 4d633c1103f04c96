"""How the learning rate goes over a run: a share of the peak rate for each step.

`wsd` is warm-up, stable, decay (Hu et al. 2024, MiniCPM; Hägele et al. 2024): the end may be moved until the decay
begins. `cosine` is GPT-3's (Loshchilov and Hutter 2017; Brown et al. 2020), `constant` stays after the warm-up.
An end that has to be moved after the decay began, since the minutes would be missed, makes the rest of the decay
steeper or flatter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightwell.config.run import ScheduleSection

EXTENSION_WARMUP = 0.01  # share of the new steps over which the rate of an extended run rises again


@dataclass(frozen=True)
class Bend:
    """The decay was at `done` (0 to 1) when its end was moved at `step`; from there it goes to the new end."""

    step: int
    done: float


def lr_scale(
    step: int, steps: int, schedule: ScheduleSection, warmup_steps: int | None = None, bend: Bend | None = None
) -> float:
    """Share of the peak rate for step number `step` (from 0) of `steps`.

    warmup_steps: fixed when the number of steps was first decided, so that moving the end leaves the past unchanged;
    left out: `schedule.warmup` of the steps.
    """
    warmup = warmup_length(steps, schedule) if warmup_steps is None else warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = decay_done(step, steps, schedule, warmup, bend)
    left = 1 - done if schedule.name == "wsd" else 0.5 * (1 + math.cos(math.pi * done))
    return schedule.final + (1 - schedule.final) * left


def decay_done(step: int, steps: int, schedule: ScheduleSection, warmup_steps: int, bend: Bend | None = None) -> float:
    """The share of the decay that is done with step number `step`: 0 before it, never 1 within the run."""
    begin, done = (bend.step, bend.done) if bend else (decay_begin(steps, schedule, warmup_steps), 0.0)
    if step < begin:
        return done
    return done + (1 - done) * (step - begin + 1) / (steps - begin + 1)  # every step of the decay does something


def warmup_length(steps: int, schedule: ScheduleSection) -> int:
    """Steps of warm-up in a run of `steps`."""
    return min(steps - 1, math.ceil(schedule.warmup * steps))


def decay_begin(steps: int, schedule: ScheduleSection, warmup_steps: int) -> int:
    """The first step of the decay; until then the end of the run may still be moved."""
    if schedule.name == "wsd":
        return max(warmup_steps, steps - math.floor(schedule.decay * steps))
    return warmup_steps if schedule.name == "cosine" else steps


def extension(schedule: ScheduleSection) -> ScheduleSection:
    """The schedule of the steps that are added to a finished run: up again over 1%, constant, then a decay as before.

    A cosine cannot be gone on with, having come down: what is added is constant-then-decay for every run.
    """
    return schedule.model_copy(update={"name": "wsd", "warmup": EXTENSION_WARMUP})
