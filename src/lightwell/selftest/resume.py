"""Does resume hold here? A small run is killed without warning, goes on, and must end with the undisturbed run's bits.

The trainings are processes of their own, since a process that is killed cannot tell what became of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lightwell.errors import LightwellError
from lightwell.runtime.device import Device
from lightwell.store.checkpoint import read_checkpoint
from lightwell.store.checkpoints import list_checkpoints, step_of

STEPS, KILL_AFTER = 30, 8
SETTINGS = (
    "tokenizer.kind=bytes", "model.context_length=32", "model.emb_dim=32", "model.n_heads=2", "model.n_layers=2",
    "model.drop_rate=0.1", "train.batch_size=4", "train.micro_batch_size=2", "train.eval_every=15",
    "train.eval_tokens=512", "train.sample_tokens=8", "checkpoint.every=2",
)  # fmt: skip


def check_resume(folder: Path, device: Device, timeout: float = 600.0) -> str | None:
    """Train twice in `folder`, once with a SIGKILL between. None if the weights are the same, else what differs."""
    text = folder / "text.txt"
    text.write_text("".join(f"{n} wells and {n * n} buckets stood in the garden.\n\n" for n in range(400)))
    val = folder / "val.txt"
    val.write_text("".join(f"{n} wells and {n * n} buckets stood in the garden.\n\n" for n in range(401, 420)))
    whole, killed = folder / "whole", folder / "killed"
    with _training(text, val, whole, device) as process:
        _finish(process, timeout)
    with _training(text, val, killed, device) as process:
        in_time = _saved_some(process, killed, timeout)
    if not in_time or step_of(list_checkpoints(killed)[-1]) >= STEPS:
        return "the run was over before it could be killed"
    with _training(text, val, killed, device) as process:
        _finish(process, timeout)
    return difference(whole, killed)


def difference(a: Path, b: Path) -> str | None:
    """What differs between the last checkpoints of two runs, or None if they are the same bit for bit."""
    one, other = (read_checkpoint(list_checkpoints(run)[-1]) for run in (a, b))
    if one.step != other.step:
        return f"the runs ended at steps {one.step} and {other.step}"
    for what, x, y in (("weights", one.model, other.model), ("moments", one.optimizer, other.optimizer)):
        if x.keys() != y.keys():
            return f"the {what} have other names"
        for name in x:
            if not torch.equal(x[name], y[name]):
                return f"the {what} differ in {name} by up to {(x[name] - y[name]).abs().max().item():.2g}"
    return None


@contextmanager
def _training(text: Path, val: Path, out: Path, device: Device) -> Iterator[subprocess.Popen[bytes]]:
    """A training as a process, which is killed where the `with` block ends before it."""
    command = [sys.executable, "-P", "-m", "lightwell", "pretrain", str(text), "--val", str(val), "--out", str(out)]
    command += ["--steps", str(STEPS), "--device", str(device.torch_device), "--json"]
    for setting in (*SETTINGS, f"runtime.dtype={str(device.dtype).removeprefix('torch.')}"):
        command += ["--set", setting]
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=alone) as process:
        try:
            yield process
        finally:
            process.kill()


def _finish(process: subprocess.Popen[bytes], timeout: float) -> None:
    _, errors = process.communicate(timeout=timeout)
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise LightwellError(f"expected a small training to end well, got exit code {process.returncode}: {last}")


def _saved_some(process: subprocess.Popen[bytes], run: Path, timeout: float) -> bool:
    """Wait until the training has saved some steps. False if it ended before."""
    end = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < end:
        if any(step_of(path) >= KILL_AFTER for path in list_checkpoints(run)):
            return True
        time.sleep(0.005)
    return False
