"""What the benchmarks share: sides in processes of their own, in turns, and medians."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
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


def pretrain_and_evaluate(text: str | Path, val: str | Path | None, minutes: float, *settings: str) -> dict[str, Any]:
    """`lightwell pretrain` in a process of its own, and its result, with the seconds it took ("seconds") and those that
    the host gave to others meanwhile ("stolen"); "heldout" is `lightwell evaluate` on all of the held-out part."""
    with tempfile.TemporaryDirectory() as parent:
        out = f"{parent}/run"
        asked = ["pretrain", str(text), "--minutes", str(minutes), "--out", out, "--json"]
        asked += ["--val", str(val)] if val else []
        asked += [part for setting in settings for part in ("--set", setting)]
        start, stolen = time.perf_counter(), stolen_seconds()
        found = lightwell(*asked)
        took = {"seconds": round(time.perf_counter() - start, 1), "stolen": round(stolen_seconds() - stolen, 1)}
        return found | took | {"heldout": lightwell("evaluate", out, "--json")}


def lightwell(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json. Raises RuntimeError where it fails."""
    done = subprocess.run([sys.executable, "-m", "lightwell", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"lightwell {' '.join(arguments)}\n{done.stderr}")
    return json.loads(done.stdout)


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
