"""Kill a training at random moments and compare what it ends with to the undisturbed run: all must be equal.

    python benchmarks/kills.py --kills 30

One run is left alone. Others are killed (SIGKILL, no warning) once each, at a moment drawn from the whole time that
the undisturbed run took, from the first import to the last file; then the same command is typed again. Compared bit
for bit: weights, moments, the metrics loss, gradient_norm, lr_scale, held-out loss, and the sampled texts.
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
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.kills, arguments.steps, random.Random(arguments.seed))
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["equal"] == result["kills"] else 4)


def measure(folder: Path, kills: int, steps: int, chance: random.Random) -> dict[str, Any]:
    began = time.perf_counter()
    train(folder / "whole", steps).wait()
    seconds = time.perf_counter() - began
    expected = outcome(folder / "whole")
    rows = []
    for n in range(kills):
        run = folder / f"killed-{n}"
        moment = chance.uniform(0, seconds)
        at_step = kill_after(train(run, steps), run, moment)
        code = train(run, steps).wait()
        found = outcome(run) if code == 0 else {}
        wrong = [what for what in expected if not equal(expected[what], found.get(what))]
        rows.append({"seconds": round(moment, 2), "last_saved_step": at_step, "exit_code": code, "different": wrong})
        print(f"kill {n + 1} of {kills}: {rows[-1]}", file=sys.stderr)
        shutil.rmtree(run)
    return {
        "kills": kills,
        "equal": sum(not row["different"] for row in rows),
        "during_training": sum(row["last_saved_step"] is not None for row in rows),
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
