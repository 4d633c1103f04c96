"""Threads that sleep while they wait for each other, instead of spinning; set before torch is imported.

Spinning wastes a whole time slice whenever something else runs on one of the processors: on two busy cores small
matrices then took 5 to 20 times as long (LOG.md).
"""

from __future__ import annotations

import os


def let_threads_sleep() -> None:
    """Ask OpenMP for it, unless the user asked for something."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
