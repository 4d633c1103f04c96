"""How long work shows itself: a bar on a terminal, plain lines in a log, silence when told so."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightwell.cli.common import write
from lightwell.runtime.observer import Observer, StepReport
from lightwell.show.terminal import shorten
from lightwell.show.units import count, duration

ROOM_FOR_BAR = 60  # columns: in fewer the bar would leave no room for the figures


class TrainingProgress(Observer):
    """One line that renews itself (terminal) or one line every so often (log): loss, rate, share of peak, time left."""

    def __init__(self, terminal: bool | None = None, lines: int = 20) -> None:
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.lines = lines
        self.heldout: float | None = None
        self.last = 0.0
        self.printed = -1
        self.made = 0  # steps

    def after_step(self, report: StepReport) -> None:
        self.made += 1
        for kind, details in report.events:
            self.note(f"step {report.step}: {words_of(kind, details)}")
        done = report.step / report.steps
        now = time.monotonic()
        if self.terminal:
            if now - self.last > 0.1 or report.step == report.steps:
                self.last = now
                wide = shutil.get_terminal_size().columns >= ROOM_FOR_BAR
                renew(f"{bar(done)} {self.line(report)}" if wide else self.line(report))
        elif int(done * self.lines) > self.printed or report.step == 1:
            self.printed = int(done * self.lines)
            write(self.line(report) + "\n")

    def line(self, report: StepReport) -> str:
        parts = [f"step {report.step}/{report.steps}"]
        if report.seconds_left is not None and report.step < report.steps:
            parts.append(f"{duration(report.seconds_left)} left")
        parts.append(f"loss {report.loss:.3f}")
        if self.heldout is not None:
            parts.append(f"held-out {self.heldout:.3f} bits/byte")
        parts.append(f"{count(report.tokens_per_second)} tokens/s")
        if report.mfu is not None:
            parts.append(f"{report.mfu:.0%} of peak")
        return "  ".join(parts)

    def after_evaluation(self, step: int, heldout: dict[str, float]) -> None:
        self.heldout = heldout["heldout.bits_per_byte"]

    def note(self, text: str) -> None:
        write(("\r\x1b[K" if self.terminal else "") + text + "\n")

    def at_end(self) -> None:
        if self.terminal:
            write("\n")


def words_of(kind: str, details: dict[str, Any]) -> str:
    """An event of training/guard.py, for a person."""
    if kind == "nonfinite":
        return f"loss {details['loss']}, gradient norm {details['gradient_norm']}: the weights stay as they were"
    return f"the loss jumped to {details['loss']:.3f}, usual was {details['usual']:.3f}"


def renew(line: str) -> None:
    """Write over the terminal's last line, with as much of it as there is room for: longer ones would stay."""
    write("\r\x1b[K" + shorten(line, shutil.get_terminal_size().columns - 1))


def bar(share: float, width: int = 20) -> str:
    filled = math.floor(share * width)
    return "█" * filled + "░" * (width - filled)


class WorkProgress:
    """For work before training: `progress(done, total, what)`, shown when it takes longer than a moment."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.what = ""
        self.began = self.last = time.monotonic()

    def __call__(self, done: int, total: int | None, what: str) -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.began, self.last = what, now, now
        if not self.terminal or now - self.last < 0.2:
            return
        self.last = now
        share = f"{bar(done / total)} {done / total:.0%}" if total else f"{done:,}"
        left = f"  {duration((now - self.began) * (total - done) / done)} left" if total and done else ""
        renew(f"{what} {share}{left}")

    def clear(self) -> None:
        if self.terminal:
            write("\r\x1b[K")


@contextmanager
def working() -> Iterator[WorkProgress]:
    """Progress that is wiped away at the end, before an error is told too."""
    shown = WorkProgress()
    try:
        yield shown
    finally:
        shown.clear()


@contextmanager
def checking() -> Iterator[Callable[[int, int | None, str], None]]:
    """Progress of the glass box's checks, which name each operation: one bar for all of them."""
    with working() as shown:
        yield lambda done, total, what: shown(done, total, "checking gradients")
