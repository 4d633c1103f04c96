"""What a disk may hold after the power failed: a recorder of file operations and a pessimistic model of the disk.

POSIX promises little: bytes written are safe after fsync of the file, names after fsync of their folder. Until then
any part of them may be there or not. The model keeps, for each file, what is safe and what was last written, and for
each change of names whether it is safe; a state after a crash is what is safe plus a chosen part of the rest.
A rename is indivisible; a change of a name happens only if earlier changes of the same name did.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lightwell.files import ops

NAMES = ("make_dir", "create", "write", "fsync", "fsync_file", "fsync_dir", "close", "rename", "remove", "remove_dir")
Op = tuple[str, ...]


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` may survive it."""


def record(monkeypatch: pytest.MonkeyPatch, root: Path, work: Callable[[], object]) -> list[tuple]:
    """Do `work` and return its operations as tuples with paths relative to `root`, e.g. ("write", "a/b", b"..")."""
    log: list[tuple] = []
    paths: dict[int, str] = {}

    def relative(path: Path) -> str:
        return Path(path).relative_to(root).as_posix()

    def wrapper(name: str, real: Callable) -> Callable:
        def wrapped(first, *rest):
            result = real(first, *rest)
            if name == "create":
                paths[result] = relative(first)
            where = paths[first] if isinstance(first, int) else relative(first)
            data = [bytes(value) if name == "write" else relative(value) for value in rest]
            log.append((name, where, *data))
            return result

        return wrapped

    with monkeypatch.context() as patch:
        for name in NAMES:
            patch.setattr(ops, name, wrapper(name, getattr(ops, name)))
        work()
    return log


def count_operations(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """How many operations `work` needs."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1

    with monkeypatch.context() as patch:
        before_each(patch, count)
        work()
    return done


def kill_at(monkeypatch: pytest.MonkeyPatch, k: int, work: Callable[[], object], *, halfway: bool = False) -> bool:
    """Do `work`, killed before its k-th operation (`halfway`: with half of its bytes written, if it is a write).

    After the kill no operation does anything, so that no clean-up can help. Returns whether it came to the kill.
    """
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done > k:
            raise Killed

    def half_a_write(real: Callable) -> Callable:
        def wrapped(fd, data):
            if done == k:
                real(fd, data[: len(data) // 2])
            step()
            real(fd, data)

        return wrapped

    with monkeypatch.context() as patch:
        write = ops.write
        before_each(patch, step)
        if halfway:
            patch.setattr(ops, "write", half_a_write(write))
        try:
            work()
        except Killed:
            return True
        return False


def fail_at(monkeypatch: pytest.MonkeyPatch, k: int, error: Callable[[], OSError], work: Callable[[], object]) -> None:
    """Do `work`; its k-th operation raises `error()`, the others work."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done == k + 1:
            raise error()

    with monkeypatch.context() as patch:
        before_each(patch, step)
        work()


def before_each(patch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have `do` called before every operation."""

    def wrapper(real: Callable) -> Callable:
        def wrapped(*arguments):
            do()
            return real(*arguments)

        return wrapped

    for name in NAMES:
        patch.setattr(ops, name, wrapper(getattr(ops, name)))


@dataclass
class File:
    safe: bytes = b""
    now: bytes = b""


@dataclass
class Folder:
    safe: dict[str, File | Folder] = field(default_factory=dict)
    now: dict[str, File | Folder] = field(default_factory=dict)


Change = list[tuple[Folder, str, "File | Folder | None"]]  # indivisible: each name in its folder gets this, or nothing


class Disk:
    """The model. Starts as the safe contents of a real folder; `do` applies recorded operations."""

    def __init__(self, start: Path) -> None:
        self.root = _load(start)
        self.pending: list[Change] = []

    def do(self, op: tuple) -> None:
        name, where, *rest = op
        folder, last = self._find(where)
        if name in ("make_dir", "create"):
            self._change([(folder, last, Folder() if name == "make_dir" else File())])
        elif name == "write":
            folder.now[last].now += rest[0]
        elif name in ("fsync", "fsync_file"):
            folder.now[last].safe = folder.now[last].now
        elif name == "fsync_dir":
            self._sync(folder.now[last] if last else self.root)
        elif name == "rename":
            target, new = self._find(rest[0])
            self._change([(folder, last, None), (target, new, folder.now[last])])
        elif name in ("remove", "remove_dir"):
            self._change([(folder, last, None)])

    def crash(self, to: Path, names: Callable[[int], bool], data: Callable[[File], bytes]) -> None:
        """Write a state after a crash: `names(i)` says whether unsafe change i happened, `data` what a file holds."""
        tree: dict[int, dict[str, File | Folder]] = {}

        def entries(folder: Folder) -> dict[str, File | Folder]:
            return tree.setdefault(id(folder), dict(folder.safe))

        lost: set[tuple[int, str]] = set()
        for i, change in enumerate(self.pending):
            touched = {(id(folder), name) for folder, name, _ in change}
            if not names(i) or touched & lost:
                lost |= touched
                continue
            for folder, name, node in change:
                _put(entries(folder), name, node)

        def save(folder: Folder, path: Path) -> None:
            path.mkdir(parents=True)
            for name, node in entries(folder).items():
                if isinstance(node, Folder):
                    save(node, path / name)
                else:
                    (path / name).write_bytes(data(node))

        save(self.root, to)

    def _find(self, where: str) -> tuple[Folder, str]:
        *parents, last = where.split("/") if where != "." else [""]
        folder = self.root
        for name in parents:
            folder = folder.now[name]
        return folder, last

    def _change(self, change: Change) -> None:
        self.pending.append(change)
        for folder, name, node in change:
            _put(folder.now, name, node)

    def _sync(self, folder: Folder) -> None:
        """Changes in this folder are safe; earlier ones of the same names were made before, so they are in them."""
        for change in self.pending:
            if any(where is folder for where, _, _ in change):
                for where, name, node in change:
                    _put(where.safe, name, node)
        self.pending = [change for change in self.pending if all(where is not folder for where, _, _ in change)]


def crashes(start: Path, log: list[tuple], into: Path, seed: int, n_random: int) -> Iterator[tuple[int, Path]]:
    """(operations done, folder with a possible state of the disk), for every prefix of the log and many choices."""
    dice = random.Random(seed)
    choices: list[tuple[Callable[[int], bool], Callable[[File], bytes]]] = [
        (lambda i: False, lambda file: file.safe),
        (lambda i: True, lambda file: file.now),
        (lambda i: True, lambda file: file.safe),
        (lambda i: True, lambda file: file.safe + bytes(len(file.now) - len(file.safe))),
        *[(lambda i: dice.random() < 0.5, lambda file: _some(file, dice))] * n_random,
    ]
    for k in range(len(log) + 1):
        for n, (names, data) in enumerate(choices):
            disk = Disk(start)
            for op in log[:k]:
                disk.do(op)
            where = into / f"{k}-{n}"
            disk.crash(where, names, data)
            yield k, where


def _some(file: File, dice: random.Random) -> bytes:
    """A part of what was written after the last fsync, perhaps with zeros or rubbish where the rest was."""
    end = dice.randint(len(file.safe), len(file.now))
    rest = len(file.now) - end
    return file.now[:end] + dice.choice([b"", bytes(rest), dice.randbytes(rest)])


def _put(entries: dict[str, File | Folder], name: str, node: File | Folder | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _load(path: Path) -> Folder:
    nodes: dict[str, File | Folder] = {}
    for child in path.iterdir():
        nodes[child.name] = _load(child) if child.is_dir() else File(child.read_bytes(), child.read_bytes())
    return Folder(dict(nodes), dict(nodes))
