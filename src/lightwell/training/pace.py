"""How many steps a run has: from its budget, and for a budget of minutes from how fast steps turn out to be.

The number of steps is a decision, taken before the first step and re-planned, while the rate has not begun to fall,
whenever a further tenth of the time has passed: the learning rate depends on where the end is.
"""

from __future__ import annotations

import math
import time

from lightwell.config.run import BudgetSection, ScheduleSection
from lightwell.training.schedule import decay_begin, warmup_length
from lightwell.training.state import TrainState


class Pace:
    """tokens_per_step: targets in one step. step_seconds: expected, to begin with. reserve: seconds to keep for what
    comes after the last step. began: `time.perf_counter()` when this sitting began, for the first one the command's
    own start, so that everything counts."""

    def __init__(
        self,
        budget: BudgetSection,
        schedule: ScheduleSection,
        tokens_per_step: int,
        *,
        step_seconds: float = 1.0,
        reserve: float = 0.0,
        began: float | None = None,
    ) -> None:
        self.budget = budget
        self.schedule = schedule
        self.tokens_per_step = tokens_per_step
        self.step_seconds = step_seconds
        self.reserve = reserve
        self.began = time.perf_counter() if began is None else began
        self.before = 0.0  # seconds of earlier sittings
        self._first: tuple[int, float] | None = None  # step and time from which speed is measured
        self._resumed = False

    def begin(self, state: TrainState) -> None:
        """Take the first decision, or take over what earlier sittings decided."""
        self.before = state.seconds
        self._resumed = state.decided("steps") is not None
        if not self._resumed:
            steps = self._steps_now(state)
            state.decide(
                "steps", steps=steps, warmup=warmup_length(steps, self.schedule), elapsed=round(self.elapsed(), 1)
            )

    def expected_steps(self, state: TrainState) -> int:
        """The steps decided, or those that would be decided now."""
        decision = state.decided("steps")
        return decision["steps"] if decision else self._steps_now(state)

    def steps(self, state: TrainState) -> int:
        decision = state.decided("steps")
        assert decision is not None, "begin() was not called"
        return decision["steps"]

    def warmup(self, state: TrainState) -> int:
        """Fixed by the first decision, so that re-planning never changes a rate of the past."""
        return next(d["warmup"] for d in state.decisions if d["kind"] == "steps")

    def elapsed(self) -> float:
        """Seconds that the run has taken so far, over all sittings."""
        return self.before + time.perf_counter() - self.began

    def seconds_left(self, state: TrainState) -> float:
        return (self.steps(state) - state.step) * self.step_seconds

    def replan(self, state: TrainState) -> None:
        """After a step: measure, and move the end if the time says so and the rate may still be told."""
        now = time.perf_counter()
        if self._first is None:
            self._first = (state.step, now)  # the first step warms up caches and is not typical
            return
        self.step_seconds = (now - self._first[1]) / (state.step - self._first[0])
        last = state.decided("steps")
        assert last is not None
        budget_seconds = 60 * (self.budget.minutes or 0)
        if self._resumed or not budget_seconds or self.elapsed() < last["elapsed"] + 0.05 * budget_seconds:
            return
        steps = self._steps_now(state)
        movable = decay_begin(min(steps, last["steps"]), self.schedule, self.warmup(state))
        if state.step < movable and steps != last["steps"]:
            state.decide("steps", steps=steps, warmup=last["warmup"], elapsed=round(self.elapsed(), 1))

    def _steps_now(self, state: TrainState) -> int:
        if self.budget.steps:
            return self.budget.steps
        if self.budget.tokens:
            return math.ceil(self.budget.tokens / self.tokens_per_step)
        seconds = 60 * (self.budget.minutes or 10.0) - self.reserve - self.elapsed()
        return state.step + max(1, math.floor(seconds / self.step_seconds))
