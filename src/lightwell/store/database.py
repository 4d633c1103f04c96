"""What was measured and what happened, in run.sqlite: four tables that any SQLite tool reads.

    metrics(step, name, value)         loss, rate, tokens/s, held-out evaluations, ...; NULL where a value was NaN
    events(id, step, time, kind, json) what happened: a failed save, a bad batch, a resume
    samples(step, prompt, text)        what the model wrote
    layers(step, layer, name, value)   measurements of single layers

Numbers about training must never end training. Rows are collected in memory and committed about once a second. If the
disk is full or another process is reading, they wait for the next time. If the file turns out broken, it is renamed,
what can be read of it is carried over into a new one, and `on_trouble` is told. On a network file system the journal
is a plain rollback journal, since the faster write-ahead log needs memory that processes share.
Sources: sqlite.org/wal.html, sqlite.org/rescode.html.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from lightwell.errors import DamagedError, RunError
from lightwell.files import ops
from lightwell.files.limits import parse_json
from lightwell.files.mounts import is_local
from lightwell.files.paths import safe_join

FORMAT = 1
SCHEMA = {
    "metrics": "CREATE TABLE metrics (step INTEGER, name TEXT, value REAL, PRIMARY KEY (name, step)) WITHOUT ROWID",
    "events": "CREATE TABLE events (id INTEGER PRIMARY KEY, step INTEGER, time REAL, kind TEXT, json TEXT)",
    "samples": "CREATE TABLE samples (step INTEGER, prompt TEXT, text TEXT)",
    "layers": "CREATE TABLE layers (step INTEGER, layer TEXT, name TEXT, value REAL, "
    "PRIMARY KEY (name, layer, step)) WITHOUT ROWID",
}
_INSERT = {
    "metrics": "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?)",
    "events": "INSERT INTO events VALUES (NULL, ?, ?, ?, ?)",
    "samples": "INSERT INTO samples VALUES (?, ?, ?)",
    "layers": "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)",
}
# Trouble that may pass: the rows wait. All other errors of the database mean that its file is broken.
_MAY_PASS = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_INTERRUPT,
}  # fmt: skip
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
COMMIT_EVERY = 1.0  # seconds
RETRY_EVERY = 10.0  # seconds, while there is trouble
MAX_WAITING = 1_000_000  # rows; more than that are dropped, oldest first, and said

Row = tuple[Any, ...]
T = TypeVar("T")

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # ends a rollback journal that names a super-journal


class RunDatabase:
    """The metrics of one run. Safe to use from several threads. As a context manager it closes itself.

    `read_only` is for everybody but the process that trains; it raises DamagedError where the file cannot be read.
    Otherwise nothing here raises for what is wrong with the file or the disk: `on_trouble` is told one sentence.
    """

    def __init__(self, path: Path, read_only: bool = False, on_trouble: Callable[[str], None] | None = None) -> None:
        self.path = safe_join(path.parent, path.name)
        self.read_only = read_only
        self._on_trouble = on_trouble
        self._lock = threading.RLock()
        self._waiting: list[tuple[str, Row]] = []
        self._next_commit = time.monotonic() + COMMIT_EVERY
        self._in_trouble = False
        self._forget_after: int | None = None
        self._connection: sqlite3.Connection | None = None
        if read_only:
            self._connection = self._reading(self._open_read_only)
        else:
            self._attempt(self._ready)

    # What training writes

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keep named numbers of a step. A second value for the same step and name replaces the first."""
        self._add([("metrics", (step, name, _real(value))) for name, value in values.items()])

    def add_event(self, step: int, kind: str, details: Mapping[str, Any] | None = None) -> None:
        """Keep what happened at a step, with details as JSON and the time of day."""
        self._add([("events", (step, time.time(), kind, json.dumps(details or {}, ensure_ascii=False)))])

    def add_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep what the model made of a prompt."""
        self._add([("samples", (step, prompt, text))])

    def add_layers(self, step: int, rows: Iterable[tuple[str, str, float]]) -> None:
        """Keep measurements of layers, each (layer, name, value)."""
        self._add([("layers", (step, layer, name, _real(value))) for layer, name, value in rows])

    def flush(self, *, durable: bool = False) -> None:
        """Commit what waits. `durable`: return when it is on the disk; before a checkpoint, so that none can be lost
        that the resumed run would not measure again."""
        with self._lock:
            self._next_commit = time.monotonic() + COMMIT_EVERY
            self._attempt(lambda: self._commit(durable))

    def delete_after(self, step: int) -> None:
        """Forget every row of a later step: the run goes on from `step` and will measure them again."""
        with self._lock:
            self._waiting = [(table, row) for table, row in self._waiting if row[0] <= step]
            self._forget_after = step
            self.flush()

    def delete_samples(self, step: int) -> None:
        """Forget what the model wrote at `step`: the run still owes it and will ask again."""
        with self._lock:
            self._waiting = [(table, row) for table, row in self._waiting if table != "samples" or row[0] != step]
            self._attempt(lambda: self._forget_samples(step))

    def close(self) -> None:
        """Commit and close, leaving a single file that can be copied. Rows that still cannot be written are lost."""
        with self._lock:
            if not self.read_only:
                self.flush(durable=True)
                if self._waiting:
                    self._say(f"{len(self._waiting)} rows of metrics are lost: {self.path} could not be written.")
                elif self._connection is not None:
                    with suppress(sqlite3.Error):  # somebody reads: then the next one to close tidies up
                        self._connection.execute("PRAGMA journal_mode = DELETE")
            self._disconnect()

    def __enter__(self) -> RunDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What people read

    def names(self) -> list[str]:
        """The names of all metrics, sorted."""
        return [name for (name,) in self._select("SELECT DISTINCT name FROM metrics ORDER BY name")]

    def metrics(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, by step."""
        rows = self._select("SELECT step, value FROM metrics WHERE name = ? ORDER BY step", name)
        return [(step, _number(value)) for step, value in rows]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What happened, in order, each with step, time (seconds since 1970), kind and details; all or of one kind."""
        rows = self._select("SELECT step, time, kind, json FROM events WHERE ?1 IS NULL OR kind = ?1 ORDER BY id", kind)
        return [{"step": step, "time": at, "kind": of, "details": _details(text)} for step, at, of, text in rows]

    def samples(self) -> list[tuple[int, str, str]]:
        """(step, prompt, text), in the order they were made."""
        return self._select("SELECT step, prompt, text FROM samples ORDER BY rowid")

    def layers(self, name: str) -> list[tuple[int, str, float]]:
        """(step, layer, value) of one measurement, by step and layer."""
        rows = self._select("SELECT step, layer, value FROM layers WHERE name = ? ORDER BY step, layer", name)
        return [(step, layer, _number(value)) for step, layer, value in rows]

    # Writing

    def _add(self, rows: list[tuple[str, Row]]) -> None:
        with self._lock:
            self._waiting.extend(rows)
            if time.monotonic() >= self._next_commit:
                self.flush()

    def _commit(self, durable: bool) -> None:
        connection = self._ready()
        with connection:
            for table, statement in _INSERT.items():
                if self._forget_after is not None:
                    connection.execute(f"DELETE FROM {table} WHERE step > ?", (self._forget_after,))
                connection.executemany(statement, [row for name, row in self._waiting if name == table])
        self._waiting.clear()
        self._forget_after = None
        if durable and (log := self._beside("-wal")).exists():  # with a rollback journal, the commit was durable
            ops.fsync_file(log)
            ops.fsync_dir(log.parent)

    def _forget_samples(self, step: int) -> None:
        connection = self._ready()
        with connection:
            connection.execute("DELETE FROM samples WHERE step = ?", (step,))

    def _attempt(self, work: Callable[[], object]) -> None:
        """Do `work`; if the file is broken, once more with a new one; if there is no room, let the rows wait."""
        try:
            try:
                work()
            except sqlite3.DatabaseError as error:
                if _code(error) in _MAY_PASS:
                    raise
                self._replace_broken(error)
                work()
        except (sqlite3.Error, OSError) as error:
            self._wait(error)
        else:
            self._in_trouble = False

    def _wait(self, error: Exception) -> None:
        if _code(error) in _BUSY:  # somebody reads just now
            return
        self._disconnect()
        self._next_commit = time.monotonic() + RETRY_EVERY
        if not self._in_trouble:
            self._say(f"Metrics cannot be written to {self.path} ({error}); they wait in memory, training goes on.")
        self._in_trouble = True
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[: len(self._waiting) - MAX_WAITING]
            self._say(f"More than {MAX_WAITING} rows of metrics wait for {self.path}; the oldest are dropped.")

    def _replace_broken(self, error: Exception) -> None:
        """Rename the broken file and its journals, begin a new one, and carry over what can still be read."""
        self._disconnect()
        n, aside = 1, self._beside(".broken")
        while aside.exists():
            n += 1
            aside = self._beside(f".broken-{n}")
        for ending in ("-wal", "-shm", "-journal", ""):
            if os.path.lexists(self._beside(ending)):
                ops.rename(self._beside(ending), aside.with_name(aside.name + ending))
        rescued = self._rescue(aside)
        # Before the rows that wait, so that order and replacement come out as if the file had never broken.
        self._waiting[:0] = rescued
        self._say(f"{self.path} is broken ({error}): set aside as {aside.name}, {len(rescued)} rows of it are kept.")

    def _rescue(self, broken: Path) -> list[tuple[str, Row]]:
        """The rows of a broken file, each table read until it fails."""
        columns = {"events": "step, time, kind, json"}
        last = math.inf if self._forget_after is None else self._forget_after
        rows: list[tuple[str, Row]] = []
        with suppress(sqlite3.Error), closing(_connect(broken, "?mode=ro")) as old:
            for table in SCHEMA:
                with suppress(sqlite3.Error):
                    found = old.execute(f"SELECT {columns.get(table, '*')} FROM {table}")
                    rows.extend((table, row) for row in found if isinstance(row[0], int) and row[0] <= last)
        return rows

    # Opening and closing

    def _ready(self) -> sqlite3.Connection:
        """The open connection, to a file whose form has been checked."""
        if self._connection is None:
            _refuse_foreign_journal(self._beside("-journal"))
            connection = _connect(self.path, "?mode=rwc")
            try:
                _prepare(connection, "WAL" if is_local(self.path) else "TRUNCATE")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _open_read_only(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise RunError(f"expected metrics in {self.path}, got no such file.")
        try:
            return _opened(self.path, "?mode=ro")
        except sqlite3.OperationalError as error:
            if _code(error) not in _MAY_PASS - _BUSY:
                raise
        return _opened(self.path, "?mode=ro&immutable=1")  # for a folder where not even a lock can be written

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):  # a broken file may refuse even this; the connection is gone all the same
                self._connection.close()
            self._connection = None

    def _select(self, statement: str, *values: Any) -> list[Row]:
        with self._lock:
            if self.read_only:
                return self._reading(lambda: self._rows(statement, values))
            found: list[Row] = []
            self._attempt(lambda: found.extend(self._rows_with_waiting(statement, values)))
            return found

    def _rows(self, statement: str, values: Row) -> list[Row]:
        if self._connection is None:
            raise sqlite3.ProgrammingError("it is closed")
        return self._connection.execute(statement, values).fetchall()

    def _rows_with_waiting(self, statement: str, values: Row) -> list[Row]:
        self._commit(durable=False)
        return self._rows(statement, values)

    def _reading(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except sqlite3.Error as error:
            raise DamagedError(f"expected a readable database, got {error}: {self.path}.") from error

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _say(self, sentence: str) -> None:
        if self._on_trouble:
            self._on_trouble(sentence)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    wait = 0.1 if "rwc" in how else 5.0  # seconds for another process: training cannot afford more
    connection = sqlite3.connect(path.absolute().as_uri() + how, uri=True, timeout=wait, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")  # no function in a stranger's schema is run
    return connection


def _opened(path: Path, how: str) -> sqlite3.Connection:
    connection = _connect(path, how)
    try:
        _require_ours(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, journal: str) -> None:
    """Make the tables in a new file; check an old one. Raises sqlite3.DatabaseError if it is not sound or not ours."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        with connection:
            connection.execute("BEGIN")
            for statement in SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
    _require_ours(connection)
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = NORMAL")


def _require_ours(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless the file has our tables and nothing else, such as a stranger's trigger."""
    found = connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT or sorted(found) != sorted(("table", name) for name in SCHEMA):
        raise sqlite3.DatabaseError(f"not a database of metrics of format {FORMAT}")


def _refuse_foreign_journal(journal: Path) -> None:
    """Rename a rollback journal that names another file: SQLite would remove that file when it rolls back.

    Ours never do, since we attach no second database. Source: sqlite.org/fileformat.html, "The Rollback Journal".
    """
    if not journal.is_file():
        return
    with open(journal, "rb") as file:
        file.seek(max(0, journal.stat().st_size - len(_JOURNAL_MAGIC)))
        names_another = file.read() == _JOURNAL_MAGIC
    if names_another:
        ops.rename(journal, journal.with_name(f"{journal.name}.refused"))


def _code(error: Exception) -> int | None:
    """SQLite's primary result code, if it gave one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _real(value: float) -> float | None:
    value = float(value)
    return None if math.isnan(value) else value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _details(text: Any) -> dict[str, Any]:
    """The details of an event; as text if they are not the JSON that we write."""
    try:
        found = parse_json(str(text).encode(), "an event")
    except DamagedError:
        found = None
    return found if isinstance(found, dict) else {"text": str(text)[:200]}
