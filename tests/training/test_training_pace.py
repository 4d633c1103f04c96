"""How many steps there are is decided from the budget, and moved only while the rate may still be told."""

import pytest

from lightwell.config.run import BudgetSection, ScheduleSection
from lightwell.training import pace as module
from lightwell.training.pace import Pace
from lightwell.training.state import TrainState


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def make(clock, step_seconds=1.0, reserve=0.0, schedule=None, **budget):
    pace = Pace(
        BudgetSection(**budget), schedule or ScheduleSection(), 1000, step_seconds=step_seconds, reserve=reserve,
        began=clock.now,
    )  # fmt: skip
    state = TrainState()
    pace.begin(state)
    return pace, state


def go(pace, state, clock, steps, seconds):
    for _ in range(steps):
        clock.now += seconds
        state.step += 1
        pace.replan(state)


def test_steps_and_tokens_are_counted(clock):
    pace, state = make(clock, steps=77)
    assert pace.steps(state) == 77
    pace, state = make(clock, tokens=10_500)
    assert pace.steps(state) == 11
    go(pace, state, clock, 11, 99.0)  # however long it takes
    assert pace.steps(state) == 11
    assert pace.finished(state)


def test_minutes_become_steps_less_what_the_end_takes(clock):
    pace, state = make(clock, step_seconds=0.5, reserve=10.0, minutes=2)
    assert pace.steps(state) == 220


def test_minutes_end_early_where_the_text_is_short(clock):
    pace, state = make(clock, step_seconds=1.0, minutes=10, most_tokens=50_500)
    go(pace, state, clock, 50, 0.5)
    assert pace.finished(state)
    assert state.step == 50


def test_the_end_moves_while_it_may(clock):
    """Steps take twice as long as expected: the end comes nearer, and the run ends in time."""
    pace, state = make(clock, step_seconds=1.0, minutes=10)
    assert pace.steps(state) == 600
    warmup = state.decisions[0]["warmup"]
    began = clock.now
    while not pace.finished(state):
        go(pace, state, clock, 1, 2.0)
    assert clock.now - began == pytest.approx(600, abs=4)
    assert state.step == pytest.approx(300, abs=2)
    decisions = [decision for decision in state.decisions if decision["kind"] == "steps"]
    assert 1 < len(decisions) < 10
    assert {decision["warmup"] for decision in decisions} == {warmup}
    rates = [pace.lr_scale(state, n) for n in range(state.step)]
    begin = rates.index(max(rates), warmup)
    last_move = decisions[-1]["step"]
    decay = next(n for n in range(begin, state.step) if rates[n] < 1)
    assert last_move < decay, "no rate that was used may have been another one than told now"


def test_a_rate_that_was_used_is_never_changed(clock):
    """Steps become slower and slower: what the schedule now says of the past is what was done."""
    pace, state = make(clock, step_seconds=0.1, minutes=1, schedule=ScheduleSection(warmup=0.1, decay=0.5))
    used, seconds = [], 0.1
    while not pace.finished(state):
        used.append(pace.lr_scale(state, state.step))
        go(pace, state, clock, 1, seconds)
        seconds *= 1.01
    assert used == [pace.lr_scale(state, n) for n in range(len(used))]


def test_a_resumed_run_keeps_its_end(clock):
    pace, state = make(clock, step_seconds=1.0, minutes=1)
    go(pace, state, clock, 5, 1.0)
    state.seconds = pace.elapsed()
    clock.now += 5000
    again = Pace(pace.budget, pace.schedule, 1000, step_seconds=9.0, began=clock.now)
    again.begin(state)
    go(again, state, clock, 10, 9.0)
    assert again.steps(state) == 60
    assert len(state.decisions) == 1
    assert again.elapsed() == pytest.approx(5 + 90)


SPEEDS = {
    "steady": lambda done: 1.0,
    "slower and slower": lambda done: 1 + done,
    "faster and faster": lambda done: 2 - done,
    "another program from the middle on": lambda done: 1.0 if done < 0.5 else 2.0,
    "another program until the middle": lambda done: 2.0 if done < 0.5 else 1.0,
    "another program near the end": lambda done: 1.0 if done < 0.85 else 2.0,
    "now and then": lambda done: 1.0 if int(20 * done) % 3 else 2.5,
}


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("minutes", [1, 2, 5, 10, 30])
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_run_of_minutes_ends_in_time_whatever_else_the_machine_does(clock, speed, minutes, schedule):
    """Preparing takes 8 s, the end 2 s if nothing slows it; some steps are followed by an evaluation as long as ten."""
    total, step_seconds = 60 * minutes, 60 * minutes / 1500
    began = clock.now
    clock.now += 8
    pace = Pace(
        BudgetSection(minutes=minutes), ScheduleSection(name=schedule), 1000, step_seconds=step_seconds, reserve=2.0,
        began=began,
    )  # fmt: skip
    state = TrainState()
    pace.begin(state)
    used = []
    while not pace.finished(state):
        used.append(pace.lr_scale(state, state.step))
        slower = SPEEDS[speed](min(1, (clock.now - began) / total))
        clock.now += slower * step_seconds * (11 if state.step % 100 == 99 else 1)
        state.step += 1
        pace.replan(state)
    clock.now += 2 * slower
    assert 0.85 * total <= clock.now - began <= 1.05 * total
    assert used == [pace.lr_scale(state, n) for n in range(state.step)], "the past stays as it was"
    falling = used[used.index(max(used)) :]
    assert falling == sorted(falling, reverse=True)
    assert schedule == "constant" or used[-1] < 0.05, "the rate comes down to its end"


def test_a_small_miss_leaves_the_decay_as_it_is(clock):
    pace, state = make(clock, step_seconds=1.0, minutes=10)
    go(pace, state, clock, 300, 1.0)
    decided = len(state.decisions)
    go(pace, state, clock, 300, 1.01)
    assert len(state.decisions) == decided
    assert pace.finished(state)


def test_a_bent_decay_goes_on_when_the_run_is_resumed(clock):
    pace, state = make(clock, step_seconds=1.0, minutes=10)
    go(pace, state, clock, 400, 1.0)
    go(pace, state, clock, 60, 3.0)
    assert "bend" in state.decisions[-1]
    again = Pace(pace.budget, pace.schedule, 1000, began=clock.now)
    again.begin(state)
    rates = range(pace.steps(state))
    assert [again.lr_scale(state, n) for n in rates] == [pace.lr_scale(state, n) for n in rates]


def test_steps_that_were_taken_back_are_no_measure(clock):
    """After going back to a checkpoint, far fewer steps seem to have taken all the time since the last mark."""
    pace, state = make(clock, step_seconds=1.0, minutes=10)
    go(pace, state, clock, 100, 1.0)
    state.step -= 90
    pace.forget()
    go(pace, state, clock, 50, 1.0)
    assert pace.step_seconds == pytest.approx(1.0)
    assert pace.steps(state) == pytest.approx(510, abs=12)


def test_an_early_stop_holds_though_the_end_was_moved_at_the_same_step_and_until_the_run_is_extended(clock):
    pace, state = make(clock, steps=100)
    state.step = 40
    state.decide("early_stop")
    state.decide("steps", steps=90, warmup=2)
    assert pace.finished(state)
    pace.extend(state, 10)
    assert not pace.finished(state)
    state.step = 50
    assert pace.finished(state)


def test_an_extension_that_stopped_early_is_extended_again_by_as_many_steps(clock):
    pace, state = make(clock, steps=100)
    state.step = 100
    pace.extend(state, 50)
    state.step = 120
    state.decide("early_stop")
    assert pace.finished(state)
    pace.extend(state, 50)
    assert not pace.finished(state)
    assert pace.steps(state) == 170
