"""When a run of minutes ends if other programs come and go: the real pace on a clock of our own, no training.

    python benchmarks/pace.py [--runs 300]

The machine is at full speed for 15 s on average, then 1.3 to 4 times slower for 8 s, and so on; each seed is one such
machine. Setting up takes 8 s, every tenth of the steps an evaluation and a sample 0.6% of the minutes; after the last
step come 2.3 s of files, and a measurement of 2.6% of the minutes that is cut to what is left. All of it takes longer
while the machine is slow.
"""

from __future__ import annotations

import argparse
import random
import statistics

from lightwell.config.run import BudgetSection, ScheduleSection
from lightwell.training import pace as paced
from lightwell.training.state import TrainState

STEPS = 400  # that a run would have if it did nothing else, on a quiet machine
FAST, SLOW = 15.0, 8.0  # seconds, on average
SETUP, FILES, MEASURE, EVALUATION = 8.0, 2.3, 0.026, 0.006  # seconds, seconds, and shares of the minutes


class Clock:
    """A machine whose time passes as it is worked on."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.slower, self.until = 1.0, self.random.expovariate(1 / FAST)

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """What takes so long on a quiet machine."""
        while self.now + seconds * self.slower > self.until:
            seconds -= (self.until - self.now) / self.slower
            self.now = self.until
            self.slower = self.random.choice([1.3, 2, 3, 4]) if self.slower == 1 else 1.0
            self.until += self.random.expovariate(1 / (FAST if self.slower == 1 else SLOW))
        self.now += seconds * self.slower


def run(minutes: float, seed: int) -> tuple[float, int]:
    """How far from the minutes it ended, as a share of them, and after how many steps."""
    total = 60 * minutes
    clock = paced.time = Clock(seed)
    clock.work(SETUP)
    before = clock.now
    clock.work(total / STEPS)
    pace = paced.Pace(
        BudgetSection(minutes=minutes), ScheduleSection(), 1000, step_seconds=clock.now - before,
        reserve=FILES + MEASURE * total, began=0.0,
    )  # fmt: skip
    state = TrainState()
    pace.begin(state)
    while not pace.finished(state):
        clock.work(total / STEPS)
        state.step += 1
        if state.step % (STEPS // 10) == 0:
            clock.work(EVALUATION * total)
        pace.replan(state)
    clock.work(FILES)
    slow = clock.slower
    clock.work(min(MEASURE * total, max(0.3, total - clock.now) / slow))
    return clock.now / total - 1, state.step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    print("| minutes | 2% end before | median | 98% end before | over +5% | under -15% | steps |\n" + "|---" * 7 + "|")
    for minutes in (1, 2, 5, 10):
        ends, steps = zip(*(run(minutes, seed) for seed in range(runs)))
        at = [f"{sorted(ends)[int(share * runs)]:+.1%}" for share in (0.02, 0.5, 0.98)]
        late, early = sum(end > 0.05 for end in ends), sum(end < -0.15 for end in ends)
        print(f"| {minutes} | {' | '.join(at)} | {late} | {early} | {statistics.mean(steps):.0f} |")


if __name__ == "__main__":
    main()
