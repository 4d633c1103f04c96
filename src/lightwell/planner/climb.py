"""Time models of the ladder with real steps on this machine: from the likeliest on towards lower predictions.

Each is timed beside the best one known, in turns where that can be: what slows a machine for a moment would else decide
between models. A neighbour that would be clearly worse is not timed; its step is reckoned from the best one's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lightwell.config.run import RunConfig
from lightwell.planner.fit import share_of
from lightwell.planner.ladder import guessed_seconds, name_of, predicted, tokens_per_step
from lightwell.planner.step_time import in_turns, measure_in_turns, measure_step_seconds
from lightwell.planner.text import TextStatistics
from lightwell.runtime.device import Device

TRIAL_SHARE, TRIAL_SECONDS = 0.05, 30.0  # of the budget, for timing candidates: whichever is less
# Share of the time for trials, evaluations, samples and saves, and for a run's steps being slower than a trial's.
OVERHEAD = 0.2
MOST_EPOCHS = 5  # times that a text is gone through: more gains nothing (LOG.md)
WORTH_TRYING = 1.04  # times the lowest prediction: a model that is timed, and not just reckoned
ROUNDS = 3  # of steps alone, where others follow in turns


@dataclass(frozen=True)
class Candidate:
    """A complete config, how long a step of it takes, how many tokens that makes, and what is predicted."""

    name: str
    config: RunConfig
    step_seconds: float
    tokens: int
    bits_per_byte: float
    timed: bool = True  # or reckoned from a neighbour's step

    @classmethod
    def of(cls, config: RunConfig, step_seconds: float, text: TextStatistics, seconds: float) -> Candidate:
        """What is predicted of a config whose steps take `step_seconds`, in so many seconds."""
        tokens = int((1 - OVERHEAD) * seconds / step_seconds * tokens_per_step(config))
        tokens = min(tokens, most_tokens(config, text))
        return cls(name_of(config), config, step_seconds, tokens, predicted(config, tokens, text))


def trial_seconds(budget: float) -> float:
    """For timing candidates, of a budget of so many seconds."""
    return min(TRIAL_SHARE * budget, TRIAL_SECONDS)


def climb(
    rungs: dict[str, RunConfig], text: TextStatistics, device: Device, peak: float, seconds: float, processes: int = 1
) -> list[Candidate]:
    """The rungs that were timed, and neighbours of the best that were not worth it or came too late, smallest first.
    None at all where the smallest is too large to try."""
    return _Climb(rungs, text, device, peak, seconds, processes).run()


class _Climb:
    """A place is a rung's number, from the smallest. `timed`: seconds of a step by place; None: too large to try."""

    def __init__(
        self,
        rungs: dict[str, RunConfig],
        text: TextStatistics,
        device: Device,
        peak: float,
        seconds: float,
        processes: int,
    ) -> None:
        self.names, self.configs = list(rungs), list(rungs.values())
        self.parts = [share_of(config, processes) for config in self.configs]  # what this process makes of a step
        self.text, self.device, self.peak, self.seconds = text, device, peak, seconds
        self.timed: dict[int, float | None] = {}
        self.deadline = time.perf_counter() + trial_seconds(seconds)

    def run(self) -> list[Candidate]:
        place = likeliest(self.configs, self.text, self.peak, self.seconds)
        self.attempt(place)
        while self.timed[place] is None and place > 0:
            place -= 1
            self.attempt(place)
        known = self.known()
        while known and self.left() > 0 and (following := self.following(known)) is not None:
            self.attempt_beside(self.best_of(known), following)
            known = self.known()
        return [c for _, c in sorted((known | self.neighbours(known)).items())] if known else []

    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def attempt(self, place: int) -> None:
        limit, part = max(0.2, self.left() / 2), self.parts[place]
        rounds = ROUNDS if in_turns(part, self.device) else 5
        self.timed[place] = measure_step_seconds(part, self.device, rounds=rounds, limit=limit)

    def attempt_beside(self, best: Candidate, other: Candidate) -> None:
        both = [self.names.index(best.name), self.names.index(other.name)]
        parts = [self.parts[place] for place in both]
        seconds = measure_in_turns(parts, self.device, [best.step_seconds, other.step_seconds], self.left())
        if seconds is None:
            self.attempt(both[1])
        else:
            self.timed[both[1]] = best.step_seconds * seconds[1] / seconds[0]

    def known(self) -> dict[int, Candidate]:
        return {place: self.at(place, seconds) for place, seconds in settled(self.timed).items()}

    def at(self, place: int, step_seconds: float) -> Candidate:
        return Candidate.of(self.configs[place], step_seconds, self.text, self.seconds)

    def best_of(self, known: dict[int, Candidate]) -> Candidate:
        return min(known.values(), key=lambda c: c.bits_per_byte)

    def neighbours(self, known: dict[int, Candidate]) -> dict[int, Candidate]:
        """Of the best: what is reckoned of those that were not tried."""
        best = self.best_of(known)
        place = self.names.index(best.name)
        # The next may be slow for its size, or have the wrong windows for this text, and the one after it not.
        near = (place - 2, place - 1, place + 1, place + 2)
        too_large = min((p for p, seconds in self.timed.items() if seconds is None), default=len(self.names))
        reckoned = {}
        for other in near:
            if 0 <= other < too_large and other not in self.timed:
                longer = guessed_seconds(self.configs[other], self.peak) / guessed_seconds(best.config, self.peak)
                reckoned[other] = replace(self.at(other, longer * best.step_seconds), timed=False)
        return reckoned

    def following(self, known: dict[int, Candidate]) -> Candidate | None:
        """The neighbour with the lowest prediction, if it is worth a trial."""
        likely = min(self.neighbours(known).values(), key=lambda c: c.bits_per_byte, default=None)
        most = WORTH_TRYING * self.best_of(known).bits_per_byte
        return likely if likely is not None and likely.bits_per_byte <= most else None


def settled(timed: dict[int, float | None]) -> dict[int, float]:
    """Seconds of a step by place on the ladder, lowest first, without what was too large to try.

    A step of a smaller model takes no longer than a larger one's; where it seemed to, others used the machine then.
    """
    found: dict[int, float] = {}
    for place in sorted(timed, reverse=True):
        taken = timed[place]
        if taken is not None:
            found[place] = min([taken, *found.values()])
    return dict(sorted(found.items()))


def likeliest(rungs: list[RunConfig], text: TextStatistics, peak: float, seconds: float) -> int:
    """The rung to begin with: the lowest prediction if steps took as long as `guessed_seconds` says."""

    def guess(config: RunConfig) -> float:
        return Candidate.of(config, guessed_seconds(config, peak), text, seconds).bits_per_byte

    return min(range(len(rungs)), key=lambda place: guess(rungs[place]))


def most_tokens(config: RunConfig, text: TextStatistics) -> int:
    return config.budget.most_tokens or max(MOST_EPOCHS * text.tokens, tokens_per_step(config))
