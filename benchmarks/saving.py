"""What saving costs: wall time of training with and without it, a GPT-2 124M saved and loaded, two processes and one.

    python benchmarks/saving.py [--rounds 3] [--steps 300]

Training: the same command with 50 checkpoints, more than a short run makes by default, and with none between start and
end, in turns, on data prepared before. 124M: weights and AdamW's two moments, float32. Two processes share the cores
that one process has alone, by torchrun.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

SHAPE = ("model.emb_dim=128", "model.n_layers=4", "model.n_heads=4", "model.context_length=128", "train.batch_size=16")
NEVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--large", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.large:
        print(json.dumps(large(args.large)))
        return
    print(common.machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pretrain(folder, "data", 1)  # prepares the text
        data = next((folder / "data").glob("dataset*"))
        often = max(1, args.steps // 50)
        training = {
            "with saves": lambda: pretrain(folder, "with", args.steps, every=often, data=data),
            "without": lambda: pretrain(folder, "without", args.steps, data=data),
            "two processes": lambda: pretrain(folder, "two", args.steps, data=data, processes=2),
        }
        found = common.in_turns(training, args.rounds)
        saved = common.in_turns(
            {"124M": lambda: common.run_side(__file__, "--large", str(folder / "large"))}, args.rounds
        )
    seconds = {side: common.median(rows, "seconds") for side, rows in found.items()}
    rates = {side: common.median(rows, "tokens_per_second") for side, rows in found.items()}
    print(f"saves of one run                 {common.median(found['with saves'], 'saves'):.0f}")
    print(f"wall time with saves / without   {seconds['with saves'] / seconds['without']:.3f}")
    print(f"step of two processes / of one   {rates['without'] / rates['two processes']:.3f}")
    for what in saved["124M"][0]:
        print(f"124M, {what:27}{common.median(saved['124M'], what):.2f}")


def pretrain(
    folder: Path, name: str, steps: int, *, every: int = NEVER, data: Path | None = None, processes: int = 1
) -> dict[str, float]:
    """One run through the command; how long it took, its median tokens/s and how many checkpoints it wrote."""
    out = folder / f"{name}-{time.time_ns()}" if data else folder / name
    command = [sys.executable, "-m", "lightwell", "pretrain", "--steps", str(steps), "--out", str(out), "--json"]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command[2:3] = [*torchrun, "lightwell"]
    if data:
        command.insert(command.index("pretrain") + 1, str(data))
    for setting in (*SHAPE, f"train.eval_every={NEVER}", f"checkpoint.every={every}"):
        command += ["--set", setting]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    rate = told["tokens_per_second"] or 0.0
    return {"seconds": time.perf_counter() - start, "tokens_per_second": rate, "saves": steps // every}


def large(folder: Path) -> dict[str, float]:
    """Save and load 124M weights with AdamW's moments."""
    import torch

    from lightwell.config.gpt import GPT_CONFIG_124M, GPTConfig
    from lightwell.model.build import GPT
    from lightwell.runtime.memory import peak_bytes
    from lightwell.store.background import BackgroundWriter
    from lightwell.store.checkpoint import read_checkpoint
    from lightwell.store.checkpoints import newest_good

    folder.mkdir(exist_ok=True)
    weights = dict(GPT(GPTConfig(**GPT_CONFIG_124M)).named_parameters())
    moments = {
        f"{kind}.{name}": torch.rand_like(w) for name, w in weights.items() for kind in ("exp_avg", "exp_avg_sq")
    }
    before = peak_bytes()
    found = {}
    with BackgroundWriter(folder, keep=1) as writer:
        for step, what in ((1, "first copy, s"), (2, "copy that training waits, s")):
            start = time.perf_counter()
            writer.submit(step, weights, moments, {"step": step})
            found[what] = time.perf_counter() - start
            writer.wait()
        found["copied and written, s"] = time.perf_counter() - start
    found["memory of the copy, GB"] = (peak_bytes() - before) / 1e9
    path = newest_good(folder)
    start = time.perf_counter()
    read_checkpoint(path)
    found["verified and loaded, s"] = time.perf_counter() - start
    found["file size, GB"] = sum(file.stat().st_size for file in path.iterdir()) / 1e9
    return found


if __name__ == "__main__":
    main()
