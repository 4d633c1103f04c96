"""What the benchmarks share: sides in processes of their own, in turns, and medians."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_side(
    script: str, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 900
) -> dict[str, Any]:
    """One side's run in a process of its own; it prints one JSON line at the end."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=os.environ | (environment or {})
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turns(sides: dict[str, Any], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Run each side `rounds` times, A B A B ...; `sides`: name -> function that runs it once."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            found[name].append(run())
            print(f"  {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def median(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def machine() -> str:
    import torch

    from lightwell.runtime.environment import processor

    cpu = f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}, torch {torch.__version__}, Python {platform.python_version()}"


def stolen_seconds() -> float:
    """Processor seconds that the host of this machine gave to others so far; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    return int(stat.read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")
