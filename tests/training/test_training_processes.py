"""Many processes compute what one computes; whatever happens to one of them, the run ends as it would have.

In float64: sums are added up in another order by other numbers of processes, and what float32 rounds differently grows
over 50 steps of training to nearly 1e-4, as it does for one process with other micro-batches.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_helpers import metrics, same

from lightwell.data.prepare import prepare
from lightwell.store.checkpoints import list_checkpoints, read_newest
from lightwell.store.database import RunDatabase

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GOLDEN = Path(__file__).parents[1] / "golden"
WORKER = Path(__file__).parent / "process_worker.py"


def torchrun(n, *arguments, restarts=0, check=True, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command += [f"--max-restarts={restarts}", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, timeout=800
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def alone(*arguments):
    subprocess.run([sys.executable, WORKER, *map(str, arguments)], check=True, timeout=800)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Our text as a document for each paragraph, of unequal length."""
    folder = tmp_path_factory.mktemp("documents")
    paragraphs = (GOLDEN / "well.txt").read_text(encoding="utf-8").split("\n\n")
    assert len({len(paragraph) for paragraph in paragraphs}) > 5
    for number, paragraph in enumerate(paragraphs):
        (folder / f"{number:02}.txt").write_text(paragraph, encoding="utf-8")
    held_out = [GOLDEN / "well-held-out.txt"]
    return prepare([folder], folder / "dataset", tokenizer="bytes", val=held_out)


@pytest.fixture(scope="module")
def one(tmp_path_factory, dataset):
    """The run of one process: 50 steps, each of three micro-batches."""
    path = tmp_path_factory.mktemp("one") / "run"
    alone(path, dataset.path, "auto", 4, 50)
    return path


def curve(path):
    return [loss for _, loss in metrics(path, "loss")["loss"]]


def assert_agree(a, b, tolerance=1e-9):
    assert len(curve(a)) == len(curve(b)) == 50
    assert curve(a)[0] - curve(a)[-1] > 1
    assert curve(b) == pytest.approx(curve(a), rel=0, abs=tolerance)
    x, y = read_newest(a), read_newest(b)
    for tensors, others in ((x.model, y.model), (x.optimizer, y.optimizer)):
        assert tensors.keys() == others.keys()
        for name in tensors:
            torch.testing.assert_close(others[name], tensors[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["data", "sharded"])
def test_two_processes_are_one(tmp_path, dataset, one, kind):
    """Documents of unequal length, accumulation 3, Muon and AdamW; losses, weights and moments."""
    torchrun(2, WORKER, tmp_path / "run", dataset.path, kind, 2, 50)
    assert_agree(one, tmp_path / "run")


@pytest.mark.parametrize(("kind", "before", "after"), [("data", 2, 1), ("sharded", 2, 1), ("sharded", 1, 2)])
def test_a_checkpoint_of_n_processes_resumes_on_m(tmp_path, dataset, one, kind, before, after):
    for n, until in ((before, "until-20"), (after, "")):
        arguments = [tmp_path / "run", dataset.path, kind, 4 // n, 50, until]
        torchrun(n, WORKER, *arguments) if n > 1 else alone(*arguments)
    assert_agree(one, tmp_path / "run")


def test_a_killed_process_changes_nothing(tmp_path, dataset):
    torchrun(2, WORKER, tmp_path / "whole", dataset.path, "data", 2, 30)
    done = torchrun(2, WORKER, tmp_path / "killed", dataset.path, "data", 2, 30, "kill", restarts=1)
    assert "exitcode: -9" in done.stderr
    whole, killed = read_newest(tmp_path / "whole"), read_newest(tmp_path / "killed")
    assert whole.step == killed.step == 30
    assert same(whole.model, killed.model)
    assert same(whole.optimizer, killed.optimizer)


@pytest.mark.parametrize(
    ("accident", "where"), [("bad-weight", "the weight tok_emb.weight"), ("bad-gradients", "the backward pass")]
)
def test_bad_numbers_are_left_behind_by_all_processes(tmp_path, dataset, accident, where):
    """They go back to the last checkpoint and pass over the data, to the same weights whether these are sharded."""
    ends = {}
    for kind in ("data", "sharded"):
        torchrun(2, WORKER, tmp_path / kind, dataset.path, kind, 2, 30, accident)
        ends[kind] = read_newest(tmp_path / kind)
        assert ends[kind].step == 30
        assert [decision["kind"] for decision in ends[kind].state["decisions"]].count("skip") == 1
        with RunDatabase(tmp_path / kind / "run.sqlite") as database:
            assert {event["details"]["first_bad_layer"] for event in database.events("nonfinite")} == {where}
    for name, tensor in ends["data"].model.items():
        torch.testing.assert_close(ends["sharded"].model[name], tensor, rtol=0, atol=1e-9)


def test_a_hanging_process_is_named_and_ends_all(tmp_path, dataset):
    """A process is frozen: the others say so after the timeout, end, and torchrun goes on from the checkpoint."""
    done = torchrun(
        2, WORKER, tmp_path / "run", dataset.path, "data", 2, 30, "stop", restarts=1, LIGHTWELL_HANG_SECONDS="6"
    )
    assert "the processes have stood still for 6 seconds" in done.stderr
    assert "rank 0: step 11, micro-batch " in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "rank 1: step " in line]
    assert line.endswith("does not answer  <- behind")
    assert read_newest(tmp_path / "run").step == 30


def test_only_the_first_process_speaks(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("".join(f"{n} wells and {n * n} buckets stood in the garden.\n\n" for n in range(400)))
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("".join(f"A bucket and {n} wells.\n\n" for n in range(400)))
    small = ["tokenizer.kind=bytes", "model.context_length=32", "model.emb_dim=32", "model.n_heads=2"]
    small += ["model.n_layers=2", "train.batch_size=4", "train.sample_tokens=8", "train.early_stop=false"]
    command = ["-m", "lightwell", "pretrain", text, "--val", held_out, "--out", tmp_path / "run"]
    command += ["--steps", 6, "--json"]
    for setting in small:
        command += ["--set", setting]
    done = torchrun(2, *command)
    (line,) = done.stdout.strip().splitlines()
    assert json.loads(line)["steps"] == 6
    assert done.stderr.count("step 6/6") == 1
    assert list_checkpoints(tmp_path / "run")
    mistaken = torchrun(2, *command[:3], tmp_path / "nothing", *command[4:6], "--out", tmp_path / "b", check=False)
    assert mistaken.returncode != 0
    assert mistaken.stderr.count("lightwell: expected") == 1
    odd = torchrun(2, *command[:7], tmp_path / "c", *command[8:], "--set", "train.batch_size=5", check=False)
    assert "that 2 processes can share equally, got 5" in odd.stdout


def test_where_the_last_save_fails_no_process_waits_for_the_others(tmp_path, dataset):
    torchrun(2, WORKER, tmp_path / "run", dataset.path, "data", 2, 12, "full-disk", LIGHTWELL_HANG_SECONDS="60")
    assert "full disk" in (tmp_path / "run" / "stopped").read_text()
    assert read_newest(tmp_path / "run").step == 10
