"""What becomes of a run when something breaks: a table of faults by the place they hit.

    python benchmarks/faults.py

A run of 40 steps stands at step 20, with an older checkpoint at step 10. One file of it is damaged, or the disk fills
up while it goes on; then it is resumed. "new": from step 20; "old": from step 10, the broken checkpoint set aside;
"refused": a sentence that names the file, nothing changed, and with the file put back it goes on. In each case the run
must end with the weights of the undisturbed one, bit for bit: exit code 4 and "DIFFERENT" if one does not.
"""

from __future__ import annotations

import contextlib
import io
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import common
import lightwell
from lightwell.store.checkpoint import load_model_only
from lightwell.store.checkpoints import list_checkpoints

STEPS, NEW, OLD = 40, 20, 10
SETTINGS = [
    *("model.context_length=32", "model.emb_dim=32", "model.n_heads=2", "model.n_layers=2", "tokenizer.kind=bytes"),
    *("model.drop_rate=0.1", "train.batch_size=4", "train.eval_every=10", "checkpoint.every=10", "checkpoint.keep=9"),
]
FAULTS = ("a flipped byte", "half of it missing", "missing")
FULL = (3_000, 30_000, 100_000)  # bytes that a file may have while the disk is "full"


def main() -> None:
    torch.set_num_threads(1)
    print(common.machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text("".join(f"{n} wells and {n * n % 97} buckets stood there.\n\n" for n in range(9000)))
        whole = lightwell.pretrain(text, steps=STEPS, out=folder / "whole", settings=SETTINGS).path
        expected = load_model_only(list_checkpoints(whole)[-1])
        half = folder / "half"
        shutil.copytree(whole, half)
        for checkpoint in list_checkpoints(half):
            if int(checkpoint.name.removeprefix("step-")) not in (NEW, OLD):
                shutil.rmtree(checkpoint)
        rows = [row for place in places(half) for row in damage(half, place, expected)]
        rows += [full_disk(half, limit, expected) for limit in FULL]
    for place in dict.fromkeys(row[0] for row in rows):
        print(f"| {place} | {' | '.join(f'{fault}: {end}' for where, fault, end in rows if where == place)} |")
    if any("DIFFERENT" in end for *_, end in rows):
        sys.exit(4)


def places(run: Path) -> list[str]:
    """The files that belong to a run, the newest checkpoint's among them."""
    newest = list_checkpoints(run)[-1]
    files = [*sorted(newest.iterdir()), *sorted((run / "dataset").rglob("*"))]
    files += [run / name for name in ("config.toml", "tokenizer.json", "run.sqlite")]
    return [str(file.relative_to(run)) for file in files if file.is_file()]


def damage(half: Path, place: str, expected: dict[str, torch.Tensor]) -> Iterator[tuple[str, str, str]]:
    for fault in FAULTS:
        with copy_of(half) as run:
            file = run / place
            good = file.read_bytes()
            if fault == "missing":
                file.unlink()
            elif fault == "half of it missing":
                file.write_bytes(good[: len(good) // 2])
            else:
                flipped = bytearray(good)
                flipped[len(good) // 2] ^= 1
                file.write_bytes(flipped)
            end = resume(run)
            if end == "refused":
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(good)
                end += f", then {resume(run)}"
            print(f"{place}, {fault}: {end}", file=sys.stderr)
            yield place, fault, end + verdict(run, expected)


def full_disk(half: Path, limit: int, expected: dict[str, torch.Tensor]) -> tuple[str, str, str]:
    with copy_of(half) as run:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            end = resume(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if end in ("refused", "stopped"):
            end += f", then {resume(run)}"
        return "a disk that fills up", f"at files of {limit:,} bytes", end + verdict(run, expected)


@contextlib.contextmanager
def copy_of(half: Path) -> Iterator[Path]:
    run = half.with_name("damaged")
    shutil.copytree(half, run)
    try:
        yield run
    finally:
        shutil.rmtree(run)


def resume(run: Path) -> str:
    """Go on with the run, and say from where it did."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            lightwell.resume(run)
        except lightwell.errors.StoppedEarly:
            return "stopped"
        except lightwell.UserError:
            return "refused"
    return "old" if list((run / "checkpoints").glob("*.broken*")) else "new"


def verdict(run: Path, expected: dict[str, torch.Tensor]) -> str:
    found = load_model_only(list_checkpoints(run)[-1])
    return "" if all(torch.equal(found[name], tensor) for name, tensor in expected.items()) else ", DIFFERENT"


if __name__ == "__main__":
    main()
