"""A save stopped anywhere leaves the old checkpoint or the new one, whole: never neither, never a mixture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import store_crash_model as crash_model
from store_helpers import content_of, save

from lightwell.store.checkpoints import newest_good, read_newest, rotate

OLD, NEW = 1, 2


def save_and_rotate(run: Path) -> None:
    save(run, NEW)
    rotate(run, keep=1)


def replace_same_step(run: Path) -> None:
    save(run, OLD, content=NEW)


WORK = {"next": save_and_rotate, "same step": replace_same_step}


def found(run: Path) -> int:
    checkpoint = read_newest(run)
    assert checkpoint is not None, "neither"
    return content_of(checkpoint)


@pytest.fixture(params=WORK)
def work(request: pytest.FixtureRequest):
    return WORK[request.param]


@pytest.mark.parametrize("halfway", [False, True])
def test_killed_at_every_operation(run: Path, work, halfway: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    k, results = 0, []
    killed = True
    while killed:
        shutil.rmtree(run, ignore_errors=True)
        save(run, OLD)
        killed = crash_model.kill_at(monkeypatch, k, lambda: work(run), halfway=halfway)
        results.append(found(run))
        work(run)  # the next process goes on: leftovers are in nobody's way
        assert found(run) == NEW
        assert not list((run / "checkpoints").glob(".*"))
        k += 1
    assert k > 20
    assert results == sorted(results)  # old up to some operation, new from there on
    assert set(results) == {OLD, NEW}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_killed_while_recovering(run: Path, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that tidies up after a kill may be killed as well, anywhere."""
    save(run, OLD)
    n = crash_model.count_operations(monkeypatch, lambda: replace_same_step(run))
    for first in range(n - 1, 0, -every):
        second, killed = 0, True
        while killed:
            shutil.rmtree(run)
            save(run, OLD)
            crash_model.kill_at(monkeypatch, first, lambda: replace_same_step(run))
            killed = crash_model.kill_at(monkeypatch, second, lambda: newest_good(run))
            assert found(run) in (OLD, NEW)
            second += 1


@pytest.mark.parametrize("n_random", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_power_cut_after_every_operation(tmp_path: Path, work, n_random: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = tmp_path / "run", tmp_path / "before"
    save(run, OLD)
    shutil.copytree(run, before)
    log = crash_model.record(monkeypatch, run, lambda: work(run))
    committed = last_rename_into_place(log) + 2  # and its parent synced
    results = set()
    for k, state in crash_model.crashes(before, log, tmp_path / "states", seed=0, n_random=n_random):
        result = found(state)
        assert result == NEW or k < committed, f"committed, and gone again after {k} of {len(log)} operations"
        results.add(result)
        shutil.rmtree(state)
    assert results == {OLD, NEW}


@pytest.mark.parametrize("forgotten", ["fsync_file", "fsync_dir"])
def test_the_model_notices_what_is_not_synced(tmp_path: Path, forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with one kind of sync left out, there are states with neither."""
    run, before = tmp_path / "run", tmp_path / "before"
    save(run, OLD)
    shutil.copytree(run, before)
    log = crash_model.record(monkeypatch, run, lambda: save_and_rotate(run))
    careless = [op for op in log if op[0] != forgotten]
    assert len(careless) < len(log)
    states = crash_model.crashes(before, careless, tmp_path / "states", seed=0, n_random=1)
    assert any(read_newest(state) is None for _, state in states)


def last_rename_into_place(log: list[tuple]) -> int:
    return max(i for i, op in enumerate(log) if op[0] == "rename" and Path(op[2]).name.startswith("step-"))


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from _pytest.monkeypatch import MonkeyPatch
from store_crash_model import before_each
from store_helpers import save
from test_store_crash import OLD, WORK

def work_until(k, run):
    left = k
    def step():
        nonlocal left
        if left == 0:
            os._exit(77)
        left -= 1
    before_each(MonkeyPatch(), step)
    WORK[sys.argv[3]](run)
    os._exit(0)

for k in range(1000):
    run = Path(sys.argv[2]) / str(k)
    save(run, OLD)
    pid = os.fork()
    if pid == 0:
        work_until(k, run)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code)
    if code != 77:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", WORK)
def test_process_killed_at_every_operation(run: Path, name: str) -> None:
    """As above, but with processes that really end: one for each operation, forked by a process of ours."""
    arguments = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(run), name]
    child = subprocess.run(arguments, check=False, capture_output=True, text=True)
    *killed, last = child.stdout.split()
    assert (set(killed), last) == ({"77"}, "0"), child.stderr
    assert len(killed) > 20
    results = [found(run / str(k)) for k in range(len(killed) + 1)]
    assert results == sorted(results)
    assert set(results) == {OLD, NEW}
