"""Kill a training at random moments and compare what it ends with to the undisturbed run: all must be equal.

    python benchmarks/kills.py --kills 30

One run is left alone. Others are killed (SIGKILL, no warning) once each; then the same command is typed again. The
moment is drawn from the time that the undisturbed run took: four of five times from its first checkpoint to its end,
else from its start to its end. Compared bit for bit: weights, moments, the metrics loss, gradient_norm, lr_scale,
held-out loss, and the sampled texts.
Prints one JSON object; exit code 4 if a run differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightwell.store.checkpoints import list_checkpoints, read_newest
from lightwell.store.database import RunDatabase

METRICS = ("loss", "gradient_norm", "lr_scale", "heldout.loss", "heldout.bits_per_byte")
SETTINGS = (
    "model.context_length=32", "model.emb_dim=48", "model.n_heads=4", "model.n_layers=3", "model.drop_rate=0.1",
    "tokenizer.kind=bytes", "train.batch_size=8", "train.micro_batch_size=4", "train.eval_every=10",
    "train.sample_tokens=16", "checkpoint.every=5",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.kills, arguments.steps, random.Random(arguments.seed))
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["equal"] == result["kills"] else 4)


def measure(folder: Path, kills: int, steps: int, chance: random.Random) -> dict[str, Any]:
    began = time.perf_counter()
    process = train(folder / "whole", steps)
    wait_for_checkpoint(folder / "whole", process)
    training = time.perf_counter()
    process.wait()
    seconds, training_seconds = time.perf_counter() - began, time.perf_counter() - training
    expected = outcome(folder / "whole")
    rows: list[dict[str, Any]] = []
    for n in range(kills):
        run = folder / f"killed-{n}"
        process = train(run, steps)
        anywhere = n % 5 == 4
        if not anywhere:
            wait_for_checkpoint(run, process)
        moment = chance.uniform(0, seconds if anywhere else training_seconds)
        at_step = kill_after(process, run, moment)
        code = train(run, steps).wait()
        found = outcome(run) if code == 0 else {}
        wrong = [what for what in expected if not equal(expected[what], found.get(what))]
        since = "start" if anywhere else "first checkpoint"
        row = {"seconds": round(moment, 2), "since": since, "last_saved_step": at_step, "different": wrong}
        rows.append(row | {"exit_code": code})
        print(f"kill {n + 1} of {kills}: {rows[-1]}", file=sys.stderr)
        shutil.rmtree(run)
    return {
        "kills": kills,
        "equal": sum(not row["different"] for row in rows),
        "in_the_middle": sum((row["last_saved_step"] or 0) < steps for row in rows),
        "undisturbed_seconds": round(seconds, 1),
        "steps": steps,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
        "rows": rows,
    }


def train(run: Path, steps: int) -> subprocess.Popen[bytes]:
    text = Path(argparse.__file__)
    command = [sys.executable, "-m", "lightwell", "pretrain", str(text), "--val", json.__file__, "--out", str(run)]
    command += ["--steps", str(steps), "--json"]
    for setting in SETTINGS:
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not (run.is_dir() and list_checkpoints(run)):
        time.sleep(0.005)


def kill_after(process: subprocess.Popen[bytes], run: Path, seconds: float) -> int | None:
    """Kill the process when so many seconds have passed. The last saved step, None if there is none yet."""
    time.sleep(seconds)
    process.kill()
    process.wait()
    saved = list_checkpoints(run) if run.is_dir() else []
    return int(saved[-1].name.removeprefix("step-")) if saved else None


def outcome(run: Path) -> dict[str, Any]:
    """Everything that must be equal."""
    checkpoint = read_newest(run)
    assert checkpoint is not None
    with RunDatabase(run / "run.sqlite", read_only=True) as database:
        curves = {name: database.metrics(name) for name in METRICS}
        samples = database.samples()
    return {"weights": checkpoint.model, "moments": checkpoint.optimizer, **curves, "samples": samples}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return len(a) > 0 and a == b


if __name__ == "__main__":
    main()
