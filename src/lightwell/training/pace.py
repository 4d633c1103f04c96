"""How many steps a run has: from its budget, and for a budget of minutes from how fast steps turn out to be.

The number of steps is a decision, taken before the first step and re-planned, while the rate has not begun to fall,
whenever a further eightieth of the time has passed: the learning rate depends on where the end is. Once the rate falls
the end stays, unless the run would miss its minutes by more than TOLERANCE: then the rest of the decay is stretched or
shortened, from the rate that it has. A finished run may be extended: the new steps then have a schedule of their own,
and what was decayed is not repeated.
"""

from __future__ import annotations

import math
import time

from lightwell.config.run import BudgetSection, ScheduleSection
from lightwell.errors import UserError
from lightwell.runtime.world import World
from lightwell.training.schedule import Bend, decay_begin, decay_done, extension, lr_scale, warmup_length
from lightwell.training.state import Decision, TrainState

REPLAN_EVERY = 0.0125  # of the minutes
TOLERANCE = 0.02  # of the minutes: a miss for which an end is moved though the rate has begun to fall
RECENT = 8  # re-plannings: speed is measured since the one so long ago, a tenth of the minutes, as evaluations come


class Pace:
    """tokens_per_step: targets in one step. step_seconds: expected, to begin with. reserve: seconds to keep for what
    comes after the last step, as long as steps take no longer than expected. began: `time.perf_counter()` when this
    sitting began, for the first one the command's own start, so that everything counts."""

    def __init__(
        self,
        budget: BudgetSection,
        schedule: ScheduleSection,
        tokens_per_step: int,
        *,
        step_seconds: float = 1.0,
        reserve: float = 0.0,
        began: float | None = None,
        world: World | None = None,
    ) -> None:
        self.budget = budget
        self.schedule = schedule
        self.tokens_per_step = tokens_per_step
        self.step_seconds = step_seconds
        self.reserve = reserve
        self.began = time.perf_counter() if began is None else began
        self.world = world or World()
        self.before = 0.0  # seconds of earlier sittings
        self._expected = step_seconds
        self._marks: list[tuple[int, float]] = []  # step and time, from the oldest of which speed is measured
        self._resumed = False
        self._planned = 0.0  # seconds that had passed when the end was last thought over

    def begin(self, state: TrainState) -> None:
        """Take the first decision, or take over what earlier sittings decided."""
        self.before = state.seconds
        self._expected = self.step_seconds
        self._resumed = state.decided("steps") is not None
        if not self._resumed:
            steps = self.world.agree(self._steps_now(state))
            state.decide("steps", steps=steps, warmup=warmup_length(steps, self.schedule))
            self._planned = self.elapsed()

    def extend(self, state: TrainState, more: int) -> None:
        """Add `more` steps to a finished run. Asked again after an interruption, it goes on with those steps.

        Raises UserError for a run that has not come to its end.
        """
        if more < 1:
            raise UserError(f"expected at least 1 step more, got {more}.")
        last = state.decided("steps", "extended")
        over = self.finished(state) if last else False
        if last and last["kind"] == "extended" and last["steps"] == last["begin"] + more and not over:
            return
        if last is None or not over:
            end = "the end" if last is None else f"step {last['steps']}"
            raise UserError(
                f"expected a finished run to extend, got one at step {state.step} that goes on to {end}.",
                "Let it end first: resume it without --extend-steps.",
            )
        begin, steps = state.step, state.step + more
        state.evaluations_since_best = 0  # an early stop begins to count anew
        state.decide("extended", begin=begin, steps=steps, warmup=warmup_length(more, extension(self.schedule)))

    def steps(self, state: TrainState) -> int:
        """The number of the last step, as decided."""
        return _last(state)["steps"]

    def finished(self, state: TrainState) -> bool:
        """Whether the run has come to its end: its last step, or an early stop after the last extension."""
        newer = state.decided("early_stop", "extended")
        return state.step >= _last(state)["steps"] or (newer is not None and newer["kind"] == "early_stop")

    def lr_scale(self, state: TrainState, step: int) -> float:
        """The share of the peak rate with which step number `step` (from 0) is made."""
        return self._scale(_in_force(state, step), step)

    def _scale(self, last: Decision, step: int) -> float:
        if last["kind"] == "extended":
            begin = last["begin"]
            return lr_scale(step - begin, last["steps"] - begin, extension(self.schedule), last["warmup"])
        return lr_scale(step, last["steps"], self.schedule, last["warmup"], _bend(last))

    def elapsed(self) -> float:
        """Seconds that the run has taken so far, over all sittings."""
        return self.before + time.perf_counter() - self.began

    def seconds_left(self, state: TrainState) -> float:
        return (self.steps(state) - state.step) * self.step_seconds

    def forget(self) -> None:
        """Steps were taken back: what was measured of them tells nothing of the next ones."""
        self._marks.clear()

    def replan(self, state: TrainState) -> None:
        """After a step: measure, and move the end if the time says so.

        The warm-up stays as first decided, so that a new end never changes a rate of the past. A run that was resumed
        keeps its end: time that passed in between is no measure.
        """
        now = time.perf_counter()
        if not self._marks:
            self._marks = [(state.step, now)]  # the first step warms up caches and is not typical
            return
        step, since = self._marks[0]
        self.step_seconds = (now - since) / max(1, state.step - step)
        if self._resumed or not self.budget.minutes:
            return
        due = self.elapsed() >= self._planned + REPLAN_EVERY * 60 * self.budget.minutes
        if not self.world.any(due):  # clocks differ: whoever finds it due makes it so for all
            return
        self._planned = self.elapsed()
        self._marks = [*self._marks, (state.step, now)][-RECENT:]
        last = _last(state)
        steps = self.world.agree(self._steps_now(state))
        if last["kind"] != "steps" or steps == last["steps"]:
            return
        warmup = last["warmup"]
        if "bend" not in last and state.step < decay_begin(min(steps, last["steps"]), self.schedule, warmup):
            state.decide("steps", steps=steps, warmup=warmup)
            return
        missed = self.world.agree(abs(steps - last["steps"]) * self.step_seconds)
        if missed > TOLERANCE * 60 * self.budget.minutes and state.step < last["steps"]:
            done = decay_done(state.step - 1, last["steps"], self.schedule, warmup, _bend(last))
            state.decide("steps", steps=steps, warmup=warmup, bend=state.step, decay_done=done)

    def _steps_now(self, state: TrainState) -> int:
        if self.budget.steps:
            return self.budget.steps
        if self.budget.tokens:
            return math.ceil(self.budget.tokens / self.tokens_per_step)
        ending = self.reserve * max(1.0, self.step_seconds / self._expected) ** 0.5  # slow now, perhaps slow then too
        seconds = 60 * (self.budget.minutes or 10.0) - ending - self.elapsed()
        steps = state.step + max(1, math.floor(seconds / self.step_seconds))
        most = self.budget.most_tokens
        return min(steps, max(1, most // self.tokens_per_step)) if most else steps


def _last(state: TrainState) -> Decision:
    decision = state.decided("steps", "extended")
    assert decision is not None, "begin() was not called"
    return decision


def _in_force(state: TrainState, step: int) -> Decision:
    """The decision by which step number `step` is made: of those taken up to then, the last."""
    ends = [decision for decision in state.decisions if decision["kind"] in ("steps", "extended")]
    return next((decision for decision in reversed(ends) if decision["step"] <= step), ends[0])


def _bend(decision: Decision) -> Bend | None:
    return Bend(decision["bend"], decision["decay_done"]) if "bend" in decision else None
