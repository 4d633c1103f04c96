"""Metrics: kept in order, replaced on resume, and never a reason for training to end."""

from __future__ import annotations

import math
import os
import sqlite3
import struct
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from store_helpers import flip

from lightwell.errors import DamagedError, RunError
from lightwell.store import database as module
from lightwell.store.database import RunDatabase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def fill(database: RunDatabase, first: int, last: int) -> None:
    for step in range(first, last + 1):
        database.add_metrics(step, {"loss": 10.0 / step, "rate": 0.5})
        database.add_layers(step, [("blocks.0", "norm", float(step))])
        database.add_sample(step, "Once", f"upon {step}")
        database.add_event(step, "tick", {"n": step})


def steps(database: RunDatabase) -> list[list[int]]:
    """The steps in each table."""
    return [
        [step for step, _ in database.metrics("loss")],
        [step for step, _, _ in database.layers("norm")],
        [step for step, _, _ in database.samples()],
        [event["step"] for event in database.events()],
    ]


def test_round_trip(path: Path, said: list[str]) -> None:
    with RunDatabase(path, on_trouble=said.append) as database:
        fill(database, 1, 3)
        database.add_metrics(2, {"loss": math.inf, "odd": math.nan})
        database.add_event(3, "note")
        for reader in (database, RunDatabase(path, read_only=True)):
            assert reader.names() == ["loss", "odd", "rate"]
            assert reader.metrics("loss") == [(1, 10.0), (2, math.inf), (3, 10.0 / 3)]
            assert math.isnan(reader.metrics("odd")[0][1])
            assert reader.metrics("none") == []
            assert reader.samples()[1] == (2, "Once", "upon 2")
            assert reader.layers("norm") == [(1, "blocks.0", 1.0), (2, "blocks.0", 2.0), (3, "blocks.0", 3.0)]
            assert [event["details"] for event in reader.events()] == [{"n": 1}, {"n": 2}, {"n": 3}, {}]
            assert [event["kind"] for event in reader.events("note")] == ["note"]
        reader.close()
    assert said == []
    fill(database := RunDatabase(path), 4, 4)
    database.close()
    read_only = RunDatabase(path, read_only=True)
    assert len(read_only.metrics("loss")) == 4
    read_only.close()
    assert os.listdir(path.parent) == ["run.sqlite"]  # one file, ready to be copied


def test_numbers_are_exact(path: Path) -> None:
    values = {f"v{i}": value for i, value in enumerate([0.1, 1e-320, 1.7976931348623157e308, -3.0, 2.0**53 + 2])}
    with RunDatabase(path) as database:
        database.add_metrics(1, values)
    with RunDatabase(path, read_only=True) as database:
        for name, value in values.items():
            assert struct.pack("d", database.metrics(name)[0][1]) == struct.pack("d", value)


def test_later_rows_are_forgotten_on_resume(path: Path) -> None:
    with RunDatabase(path) as database:
        fill(database, 1, 10)
    with RunDatabase(path) as database:
        fill(database, 11, 12)  # some still wait
        database.delete_after(6)
        assert steps(database) == [list(range(1, 7))] * 4
        fill(database, 7, 8)
        assert steps(database) == [list(range(1, 9))] * 4


def test_a_step_is_cheap_and_commits_come_once_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    database = RunDatabase(path)
    commits = []
    monkeypatch.setattr(database, "_commit", lambda durable: commits.append(now))
    for _ in range(1000):
        now += 0.01
        database.add_metrics(1, {"loss": 1.0})
    assert len(commits) == pytest.approx(10, abs=1)


def test_a_clock_that_jumps_back_does_not_stop_commits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: -1e12)
    with RunDatabase(path) as database:
        fill(database, 1, 1)
        assert database.events()[0]["time"] == -1e12


def test_readers_see_what_is_committed_and_never_wait_for_training(path: Path, said: list[str]) -> None:
    with RunDatabase(path, on_trouble=said.append) as database, RunDatabase(path, read_only=True) as reader:
        fill(database, 1, 1)
        assert reader.names() == []
        database.flush()
        assert reader.names() == ["loss", "rate"]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._connection.execute("DELETE FROM metrics")


@pytest.mark.parametrize("journal", ["local", "network"])
def test_another_process_that_holds_the_file_only_delays_rows(
    path: Path, said: list[str], journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_local", lambda path: journal == "local")
    with RunDatabase(path, on_trouble=said.append) as database:
        mode = database._connection.execute("PRAGMA journal_mode").fetchone()[0]
        assert mode == {"local": "wal", "network": "truncate"}[journal]
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        fill(database, 1, 2)
        database.flush()
        assert len(database._waiting) == 10
        other.execute("ROLLBACK")
        other.close()
        database.flush(durable=True)
        assert steps(database) == [[1, 2]] * 4
    assert said == []


def test_threads_may_share_it(path: Path) -> None:
    with RunDatabase(path) as database:
        threads = [
            threading.Thread(target=lambda n=n: [database.add_event(n, "e") or database.flush() for _ in range(20)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(event["step"] for event in database.events()) == sorted([0, 1, 2, 3] * 20)


class Full:
    """A connection whose every write finds the disk full, while `on`."""

    def __init__(self, real: sqlite3.Connection, code: int) -> None:
        self.real, self.code, self.on = real, code, True

    def __getattr__(self, name: str):
        return getattr(self.real, name)

    def __enter__(self):
        return self.real.__enter__()

    def __exit__(self, *exception):
        return self.real.__exit__(*exception)

    def executemany(self, *arguments):
        if self.on:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = self.code
            raise error
        return self.real.executemany(*arguments)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_READONLY])
def test_no_room_rows_wait_and_nothing_is_lost(path: Path, said: list[str], code: int, monkeypatch) -> None:
    with RunDatabase(path, on_trouble=said.append) as database:
        fill(database, 1, 5)
        database.flush()
        real, full = module._connect, []
        monkeypatch.setattr(module, "_connect", lambda *how: full.append(Full(real(*how), code)) or full[-1])
        database._disconnect()
        database.delete_after(3)
        fill(database, 4, 6)
        for _ in range(3):
            database.flush()
        assert len(said) == 1
        assert "they wait in memory, training goes on" in said[0]
        assert database.events() == []  # it cannot say, and does not raise
        for connection in full:
            connection.on = False
        monkeypatch.setattr(module, "_connect", real)
        database.flush()
        assert steps(database) == [[1, 2, 3, 4, 5, 6]] * 4
    assert len(said) == 1


def test_waiting_rows_have_a_limit(path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    path.mkdir()  # in the way
    with RunDatabase(path, on_trouble=said.append) as database:
        for step in range(20):
            database.add_metrics(step, {"loss": 1.0})
        database.flush()
        path.rmdir()
        database.flush()
        assert steps(database)[0] == list(range(10, 20))
    assert any("oldest are dropped" in sentence for sentence in said)


def test_rows_lost_in_the_end_are_said(path: Path, said: list[str]) -> None:
    path.mkdir()
    with RunDatabase(path, on_trouble=said.append) as database:
        database.add_metrics(1, {"loss": 1.0, "rate": 2.0})
    assert "2 rows of metrics are lost" in said[-1]


def test_every_kind_of_damage_is_survived(path: Path, said: list[str]) -> None:
    """Any byte may be wrong and any part missing: opening, writing, reading, closing go on; readers are told."""
    with RunDatabase(path) as database:
        fill(database, 1, 200)
    good = path.read_bytes()
    page = 4096
    damages = [b"", b"not a database" * 500, good[:100], good[: page + 1], good[: len(good) // 2], bytes(len(good))]
    damages += [good[:at] + b"\xa5" * 64 + good[at + 64 :] for at in range(0, len(good) - 64, page // 2)]
    aside = 0
    for damage in damages:
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(damage)
        said.clear()
        with RunDatabase(path, on_trouble=said.append) as database:
            database.delete_after(150)
            fill(database, 151, 152)
            assert all(found[-2:] == [151, 152] for found in steps(database))
        if said:
            aside += 1
            assert "set aside as run.sqlite.broken" in said[0]
            assert path.with_name("run.sqlite.broken").read_bytes() == damage
        with RunDatabase(path, read_only=True) as reader:
            assert steps(reader)[0][-2:] == [151, 152]
    assert aside > 5


def test_what_can_be_read_of_a_broken_file_is_kept(path: Path, said: list[str]) -> None:
    with RunDatabase(path) as database:
        fill(database, 1, 50)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("DROP TABLE samples")
    other.close()
    with RunDatabase(path, on_trouble=said.append) as database:
        database.delete_after(40)
        assert steps(database) == [list(range(1, 41)), list(range(1, 41)), [], list(range(1, 41))]
    assert "200 rows of it are kept" in said[0]


def test_a_file_that_breaks_under_way(path: Path, said: list[str]) -> None:
    with RunDatabase(path, on_trouble=said.append) as database:
        fill(database, 1, 100)
        database.flush()
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("DROP TABLE metrics")
        other.close()
        fill(database, 101, 102)
        database.flush()
        assert [found[-2:] for found in steps(database)] == [[101, 102]] * 4
    assert len(said) == 1


def test_readers_are_told_of_damage(path: Path) -> None:
    with pytest.raises(RunError, match="got no such file"):
        RunDatabase(path, read_only=True)
    assert not path.exists()
    with RunDatabase(path) as database:
        fill(database, 1, 100)
    flip(path, 0)
    with pytest.raises(DamagedError, match=r"run\.sqlite"):
        RunDatabase(path, read_only=True)
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(DamagedError, match="expected a readable database"):
        RunDatabase(path, read_only=True)
    assert os.listdir(path.parent) == ["run.sqlite"]


def test_a_closed_folder_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even a lock file can be written, the file is read as it lies there."""
    with RunDatabase(path) as database:
        fill(database, 1, 2)
    real, asked = module._connect, []

    def cannot_open(path: Path, how: str) -> sqlite3.Connection:
        asked.append(how)
        if "immutable" in how:
            return real(path, how)
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(module, "_connect", cannot_open)
    with RunDatabase(path, read_only=True) as reader:
        assert steps(reader) == [[1, 2]] * 4
    assert len(asked) == 2


# Strangers' files


def test_a_journal_that_would_remove_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    """SQLite removes the "super-journal" that a journal names. A stranger's journal could name any file of yours."""
    victim, journal = tmp_path / "precious.txt", tmp_path / "run.sqlite-journal"
    RunDatabase(path).close()
    for read_only in (True, False):
        victim.write_text("precious")
        journal.write_bytes(hostile_journal(victim, path.stat().st_size // 4096))
        with suppress(DamagedError):
            RunDatabase(path, read_only=read_only).close()
        assert victim.read_text() == "precious"
    journal.write_bytes(hostile_journal(victim, path.stat().st_size // 4096))
    plain = sqlite3.connect(path)  # the attack is real: this is what happens without our check
    plain.execute("SELECT * FROM metrics")
    plain.close()
    assert not victim.exists()


def hostile_journal(victim: Path, pages: int) -> bytes:
    """A rollback journal for a file of so many pages that changes none, and names `victim` as its super-journal."""
    magic, name = module._JOURNAL_MAGIC, str(victim).encode()
    head = magic + struct.pack(">IIIII", 0, 0, pages, 512, 4096)
    lock_page = 0x40000000 // 4096 + 1
    tail = struct.pack(">I", lock_page) + name + struct.pack(">II", len(name), sum(name)) + magic
    return head.ljust(512, b"\0") + tail


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON metrics BEGIN DELETE FROM events; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (x)",
        "PRAGMA user_version = 7",
    ],
)
def test_a_strangers_schema_is_not_used(path: Path, said: list[str], statement: str) -> None:
    with RunDatabase(path) as database:
        fill(database, 1, 2)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(statement)
    other.close()
    with pytest.raises(DamagedError, match="not a database of metrics of format 1"):
        RunDatabase(path, read_only=True)
    with RunDatabase(path, on_trouble=said.append) as database:
        fill(database, 3, 3)
        assert steps(database) == [[1, 2, 3]] * 4
    assert "set aside" in said[0]


def test_a_link_that_leads_out_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunDatabase(path).close()
    os.symlink(path, tmp_path / "run" / "run.sqlite")
    for read_only in (False, True):
        with pytest.raises(DamagedError, match="leads out"):
            RunDatabase(tmp_path / "run" / "run.sqlite", read_only=read_only)


def test_odd_values_of_strangers_are_read_as_such(path: Path) -> None:
    with RunDatabase(path) as database:
        fill(database, 1, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("UPDATE metrics SET value = 'x' WHERE name = 'loss'")
    other.execute("UPDATE events SET json = ?", ("[" * 100_000,))
    other.close()
    with RunDatabase(path, read_only=True) as reader:
        assert math.isnan(reader.metrics("loss")[0][1])
        assert reader.events()[0]["details"] == {"text": "[" * 200}
