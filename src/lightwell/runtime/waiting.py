"""How threads wait for each other; set before torch is imported, since OpenMP reads it once.

Threads that spin while they wait are the fastest when nobody else wants the processors, and waste whole time slices
when somebody does: on two cores with one other busy process, small models took 4 times as long as with threads that
sleep, and with OpenMP's own setting 10 times. On quiet cores sleeping costs a quarter of the speed (LOG.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SPINS = "10000"  # looks before a thread goes to sleep after all: a fraction of a millisecond
LOOK_SECONDS = 0.2
QUIET = 0.3  # of one processor: less is the usual background, at the clock's ticks of 10 ms


def let_threads_sleep() -> None:
    """Have threads sleep at once, unless the user asked for something."""
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def let_threads_wait_as_fits() -> None:
    """Have threads spin for a moment on a quiet machine, sleep on a busy one, unless the user asked for something."""
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ and _busy_processors() < QUIET:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    let_threads_sleep()


def _busy_processors() -> float:
    """How many processors are at work just now; infinity where the system does not say."""
    before = _busy_ticks()
    time.sleep(LOOK_SECONDS)
    after = _busy_ticks()
    if before is None or after is None:
        return float("inf")
    return (after - before) / os.sysconf("SC_CLK_TCK") / LOOK_SECONDS


def _busy_ticks() -> int | None:
    """Clock ticks that all processors together have worked: user, nice, system, interrupts, stolen (proc(5))."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal
