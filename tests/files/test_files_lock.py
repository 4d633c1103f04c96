"""The lock: one at a time; the dead do not block; people are told who holds it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightwell.errors import DamagedError, LockedError, UserError
from lightwell.files import lock as module
from lightwell.files.lock import holder, lock_folder
from lightwell.files.processes import host

CHILD = """
import sys
from pathlib import Path
from lightwell.files.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds the lock of `tmp_path`."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "locked\n"
    yield child
    if child.poll() is None:
        child.kill()
    child.communicate()


def lock_and_release(folder: Path) -> module.Lock:
    with lock_folder(folder) as lock:
        return lock


def test_the_second_is_refused_and_told_who_has_it(tmp_path: Path, other: subprocess.Popen) -> None:
    with pytest.raises(LockedError, match=f"in use by process {other.pid} on {host()}, since 20..-..-..T") as caught:
        lock_and_release(tmp_path)
    assert caught.value.hint
    assert holder(tmp_path)["pid"] == other.pid
    other.communicate("")
    assert lock_and_release(tmp_path).note == ""
    assert holder(tmp_path) is None


def test_a_killed_process_does_not_block(tmp_path: Path, other: subprocess.Popen) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == other.pid  # stale, and in nobody's way
    assert holder(tmp_path) is None
    lock_and_release(tmp_path)


def test_even_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
            lock_and_release(tmp_path)
        assert holder(tmp_path)["pid"] == os.getpid()
    lock_and_release(tmp_path)


def test_it_is_released_when_the_block_raises(tmp_path: Path) -> None:
    def fail() -> None:
        with lock_folder(tmp_path):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    lock_and_release(tmp_path)


def test_looking_does_not_disturb(tmp_path: Path) -> None:
    """`holder` may have the lock for a moment: whoever wants it then waits a moment too."""
    assert holder(tmp_path) is None
    assert not (tmp_path / "lock").exists()
    lock_and_release(tmp_path)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            holder(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(20):
        lock_and_release(tmp_path)
    stop.set()
    thread.join()


@pytest.mark.parametrize("text", ["", "rubbish", "[1]", '{"pid": 1}', "[" * 4000, "\ud800"])
def test_a_lock_file_with_other_text_is_only_less_helpful(tmp_path: Path, other, text: str) -> None:
    (tmp_path / "lock").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(LockedError, match="in use by another process"):
        lock_and_release(tmp_path)
    assert holder(tmp_path) is None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_said(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(fd: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path) as lock:
        assert lock.note.startswith(f"The file system of {tmp_path} cannot lock")
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):  # a living process is respected all the same
            lock_and_release(tmp_path)
        assert holder(tmp_path)["pid"] == os.getpid()
    assert holder(tmp_path) is None
    gone = {"pid": 2**22 + 1, "host": host(), "time": "2020-01-01"}
    for recorded in (gone, gone | {"host": "elsewhere", "pid": 1}, gone | {"pid": "x"}):
        (tmp_path / "lock").write_text(json.dumps(recorded))
        assert "cannot lock" in lock_and_release(tmp_path).note


def test_other_errors_of_the_lock_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def fail(fd: int, how: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken disk"):
        lock_and_release(tmp_path)


def test_closed_folders_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "lock"))

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(UserError, match=f"expected to lock {tmp_path}, got no permission at {tmp_path}/lock"):
        lock_and_release(tmp_path)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("text")
    os.symlink(tmp_path / "precious", tmp_path / "run" / "lock")
    with pytest.raises(DamagedError, match="leads out"):
        lock_and_release(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "text"


def hold_on(ready, stop) -> None:
    ready.set()
    stop.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork") or sys.version_info >= (3, 12), reason="forking with threads warns")
def test_a_child_that_outlives_us_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()
    with lock_folder(tmp_path):
        child = context.Process(target=hold_on, args=(ready, stop))
        child.start()
        assert ready.wait(10)
    lock_and_release(tmp_path)
    stop.set()
    child.join()
    assert child.exitcode == 0
