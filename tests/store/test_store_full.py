"""A disk that fills up, a folder that closes: in the middle of each kind of write, nothing saved before is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from store_crash_model import count_operations, fail_at
from store_helpers import content_of, save

from lightwell.errors import SpaceError, UserError
from lightwell.store.checkpoints import list_checkpoints, read_newest, rotate, step_of

ERRORS = {
    errno.ENOSPC: (SpaceError, "got a full disk"),
    errno.EDQUOT: (SpaceError, "got a used-up disk quota"),
    errno.EFBIG: (SpaceError, "got a file-size limit"),
    errno.EROFS: (UserError, "got a read-only file system"),
    errno.EACCES: (UserError, "got no permission"),
    errno.EIO: (UserError, "got an input/output error"),
}


@pytest.mark.parametrize("code", ERRORS, ids=lambda code: errno.errorcode[code])
def test_every_operation_of_a_save_may_fail(run: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    n = count_operations(monkeypatch, lambda: save(run, 2))
    expected, words = ERRORS[code]
    outcomes = []
    for k in range(n):
        shutil.rmtree(run)
        save(run, 1)
        with pytest.raises(expected, match=words) as caught:
            fail_at(monkeypatch, k, lambda: OSError(code, os.strerror(code)), lambda: save(run, 2))
        assert caught.value.hint
        outcomes.append(content_of(read_newest(run)))
        assert not list((run / "checkpoints").glob(".*"))  # nothing that takes the room
        save(run, 2)  # tried again, it works
        assert content_of(read_newest(run)) == 2
    assert n > 20
    assert outcomes == sorted(outcomes)


def test_every_operation_of_a_replacement_and_a_rotation_may_fail(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        save(run, 2, content=3)
        rotate(run, 1)

    for step in (1, 2):
        save(run, step)
    n = count_operations(monkeypatch, work)
    for k in range(n):
        shutil.rmtree(run)
        for step in (1, 2):
            save(run, step)
        try:
            fail_at(monkeypatch, k, lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), work)
        except SpaceError:
            assert content_of(read_newest(run)) in (2, 3)
        else:
            assert content_of(read_newest(run)) == 3  # what failed was only to remove something
    assert n > 30


CHILD = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from store_helpers import content_of, save
from lightwell.errors import SpaceError
from lightwell.store.checkpoint import write_checkpoint
from lightwell.store.checkpoints import read_newest
from lightwell.store.database import RunDatabase

run = Path(sys.argv[2])
save(run, 1)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
limit = lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
results = {"refused": [], "kept": []}
big = {"a": torch.ones(4096), "b": torch.ones(512)}
for sizes in ((big, {}, {}), ({}, big, {}), ({}, {}, {"text": "x" * 9000}), ({}, {}, {})):
    for n in (0, 100, 400, 8192):
        limit(n)
        try:
            write_checkpoint(run, 2, *sizes)
        except SpaceError as error:
            results["refused"].append(error.message)
        limit(hard)
        results["kept"].append((n, read_newest(run).step))
        if results["kept"][-1][1] == 2:
            import shutil
            shutil.rmtree(run / "checkpoints" / "step-00000002")
said = []
with RunDatabase(run / "run.sqlite", on_trouble=said.append) as database:
    for step in range(1, 2001):
        if step == 500:
            database.flush()
            limit(64 * 1024)
        if step == 1500:
            limit(hard)
        database.add_metrics(step, {"loss": 1.0 / step, "rate": 1.0})
        database.add_sample(step, "p", "t" * 50)
        if step % 100 == 0:
            database.flush()
with RunDatabase(run / "run.sqlite", read_only=True) as database:
    results["rows"] = [len(database.metrics("loss")), len(database.samples())]
results["said"] = said
print(json.dumps(results))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits there")
def test_a_file_size_limit_in_the_middle_of_real_writes(run: Path) -> None:
    """The system itself refuses to let files grow: weights, moments, state, manifest, database."""
    arguments = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(run)]
    child = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    results = json.loads(child.stdout)
    small = [[0, 1], [100, 1], [400, 1]]
    assert results["kept"] == [*small, [8192, 1], *small, [8192, 1], *small, [8192, 1], *small, [8192, 2]]
    assert len(results["refused"]) == 15
    assert all("got a file-size limit" in message for message in results["refused"])
    assert results["rows"] == [2000, 2000]
    assert len(results["said"]) == 1
    assert "they wait in memory" in results["said"][0]


def test_a_save_that_failed_for_room_succeeds_when_there_is_some(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    with pytest.raises(SpaceError):
        fail_at(monkeypatch, 9, lambda: OSError(errno.ENOSPC, "full"), lambda: save(run, 2))
    save(run, 2)
    assert [step_of(path) for path in list_checkpoints(run)] == [1, 2]
