"""Files and folders that a user names, to documents: which files are text, what is in them, and what was left out.

A named file must be text, or it is an error. A named folder may hold anything: what is not text, or hidden, or made by
tools rather than people, is skipped, and the list of what was skipped and why is kept. Text is UTF-8, with or without a
byte order mark; a file that calls itself text (by its suffix) and is not UTF-8 is an error that names the place.
A `.jsonl` file with a "text" key in each line is one document per line; any other file is one document.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shlex
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightwell.data.split import best_cut
from lightwell.errors import DataError
from lightwell.files.paths import command

_SUFFIXES = {
    "c": ".c .h", "c#": ".cs", "c++": ".cc .cpp .hpp", "clojure": ".clj", "css": ".css", "csv": ".csv",
    "dart": ".dart", "elixir": ".ex .exs", "erlang": ".erl", "fortran": ".f90", "go": ".go", "haskell": ".hs",
    "html": ".htm .html", "java": ".java", "javascript": ".js .jsx", "json": ".json", "julia": ".jl", "kotlin": ".kt",
    "lisp": ".el .lisp", "lua": ".lua", "markdown": ".md .markdown", "matlab": ".m", "ocaml": ".ml", "org": ".org",
    "perl": ".pl", "php": ".php", "python": ".py .pyi", "r": ".r", "restructuredtext": ".rst", "ruby": ".rb",
    "rust": ".rs", "scala": ".scala", "scheme": ".scm", "shell": ".sh", "sql": ".sql", "swift": ".swift",
    "tex": ".tex", "text": ".jsonl .text .txt", "toml": ".toml", "typescript": ".ts .tsx", "xml": ".xml",
    "yaml": ".yaml .yml", "zig": ".zig",
}  # fmt: skip
LANGUAGES = {suffix: language for language, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
NOT_FOR_READING = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# What a folder holds that a tool has made.
_DATASET, _RUN = ("documents.jsonl", "train-00000.bin"), ("config.toml", "checkpoints")  # ours
_MARKS_OF_TOOLS = (("pyvenv.cfg",), _DATASET, _RUN, (".attempt",))
BLOCK = 1 << 26  # bytes of a file that become one document; a larger file becomes several
SNIFFED = 8192  # bytes at the start of a file that decide whether it is text
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class File:
    """A file to read. `named`: by the user, rather than a folder that it is in. `take`: read only so many bytes."""

    path: Path
    size: int
    named: bool
    take: int | None = None

    @property
    def language(self) -> str:
        """A guess by suffix; "text" if it says nothing."""
        return LANGUAGES.get(self.path.suffix.lower(), "text")


@dataclass(frozen=True)
class Document:
    """One text. `start`: where in its file it begins, in bytes."""

    source: str
    language: str
    text: bytes
    start: int = 0


@dataclass
class Sources:
    """The files to read, in a fixed order, and what was skipped, as (path, reason)."""

    files: list[File] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        return sum(file.size if file.take is None else file.take for file in self.files)

    def documents(self) -> Iterator[Document]:
        """Read all files. Raises DataError where one is not UTF-8, cannot be read or has gone."""
        for file in self.files:
            yield from read_documents(file)


def collect(sources: Sequence[Path | str]) -> Sources:
    """Find the text files in some files and folders, the latter with all they hold, in sorted order.

    Raises DataError for a path that does not exist, may not be read, is empty or (as a named file) is not text, and if
    no text is found at all.
    """
    found = Sources()
    walk = _Walk(found)
    for source in map(Path, sources):
        walk.named(source)
    if not found.files:
        names = ", ".join(shown(Path(source)) for source in sources[:3]) or "no path"
        reasons = _summary(found.skipped)
        raise DataError(
            f"expected text in {names}, got {reasons or 'an empty folder'}.", "Name a text file, or a folder of them."
        )
    return found


class _Walk:
    """Goes through folders once each, whatever links lead back to them."""

    def __init__(self, found: Sources) -> None:
        self._found = found
        self._seen_folders: set[tuple[int, int]] = set()
        self._seen_files: set[str] = set()

    def named(self, path: Path) -> None:
        """A path of the user's: anything unusual about it is an error."""
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                require_no_run(path)
                if self._is_new(path):
                    self._folder(path)
                return
            if not stat.S_ISREG(status.st_mode):
                raise DataError(
                    f"expected a file or folder, got {shown(path)}, which is neither.",
                    "Save its content in a file first.",
                )
            problem = _not_text(path)
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:  # a NUL in the name
            raise DataError(f"expected a path, got {str(path)!r}.") from error
        if problem:
            raise DataError(f"expected text in {shown(path)}, got {problem}.", "Name files of UTF-8 text.")
        self._take(path, status.st_size, named=True)

    def _folder(self, top: Path) -> None:
        """Take what is in a folder and below; what is in the way there is skipped and noted."""
        todo = _sorted(top)[::-1]  # a stack: the next path is its last
        while todo:
            path = todo.pop()
            try:
                reason = self._skip_reason(path)
                if not reason and path.is_dir():
                    todo += _sorted(path)[::-1] if self._is_new(path) else []
                elif not reason:
                    self._take(path, path.stat().st_size, named=False)
            except OSError as error:
                reason = f"not readable: {error.strerror}"
            if reason:
                self._found.skipped.append((shown(path), reason))

    def _skip_reason(self, path: Path) -> str:
        """Why something in a folder is not for reading, or ""."""
        if path.name.startswith("."):
            return "hidden"
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "made by a tool" if _is_made_by_a_tool(path) else ""
        whole = path.suffix.lower() not in LANGUAGES  # nothing says that it is text but its bytes
        return _not_text(path, whole) if stat.S_ISREG(mode) else "not a regular file"

    def _is_new(self, folder: Path) -> bool:
        status = folder.stat()
        seen = (status.st_dev, status.st_ino) in self._seen_folders
        self._seen_folders.add((status.st_dev, status.st_ino))
        return not seen

    def _take(self, path: Path, size: int, named: bool) -> None:
        real = os.path.realpath(path)
        if real not in self._seen_files:
            self._seen_files.add(real)
            self._found.files.append(File(path, size, named))


def read_documents(file: File) -> Iterator[Document]:
    """The documents of one file, as valid UTF-8 without byte order mark; those without text are left out.

    Raises DataError for other bytes, with their offset.
    """
    try:
        for start, data in _blocks(file):
            if start == 0 and data.startswith(codecs.BOM_UTF8):
                start, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
            data = _valid(file, start, data)
            lines = _json_lines(file, start, data) if file.path.suffix.lower() == ".jsonl" else [(start, data)]
            for where, text in lines:
                if text.strip():
                    yield Document(shown(file.path), file.language, text, where)
    except OSError as error:
        raise unreadable(file.path, error) from error


def _blocks(file: File) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file: as a rule all of it; a very large one in blocks, cut between paragraphs or lines."""
    left = file.size if file.take is None else file.take
    with open(file.path, "rb") as opened:
        start, data = 0, opened.read(min(left, BLOCK))
        left -= len(data)
        while left > 0 and len(data) >= BLOCK:
            cut = best_cut(data, BLOCK // 2, len(data) - 1)
            yield start, data[:cut]
            more = opened.read(min(left, BLOCK))
            start, data, left = start + cut, data[cut:] + more, left - len(more)
        yield start, data


def _valid(file: File, start: int, data: bytes) -> bytes:
    """The bytes, if they are UTF-8; without the character that `take` has cut in two. DataError otherwise."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = start + error.start
        if error.reason == "unexpected end of data" and file.take is not None and place > file.take - 4:
            return data[: error.start]
        name = shown(file.path)
        raise DataError(
            f"expected UTF-8 in {name}, got byte 0x{data[error.start]:02X} at offset {place}.",
            f"Convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(name)} > converted.txt;"
            " or leave it out.",
        ) from error
    return data


def _json_lines(file: File, start: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, text) of each line {"text": ...} of a .jsonl file; without the line that `take` has cut in two."""
    end = start + len(data)
    for line in data.split(b"\n"):
        where, start = start, start + len(line) + 1
        if not line.strip() or (file.take is not None and start > end > file.take - 4):
            continue
        try:
            text = json.loads(line)["text"].encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f'expected {{"text": "..."}} in the line at offset {where} of {shown(file.path)}, got half a character'
                f" (\\u{ord(error.object[error.start]):04x} alone).",
                "Leave the line out.",
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            found = line[:40].decode(errors="replace")
            raise DataError(
                f'expected {{"text": "..."}} in the line at offset {where} of {shown(file.path)}, got {found!r}.',
                "Rename it to .txt to read its lines as they are.",
            ) from error
        yield where, text


def limit(sources: Sources, limit_bytes: int, seed: int) -> Sources:
    """A choice of the files that `seed` decides, of `limit_bytes` together: the last one is read up to that.

    The files keep their order. Raises DataError for a limit below 1.
    """
    if limit_bytes < 1:
        raise DataError(f"expected a limit of at least 1 byte, got {limit_bytes}.")
    left, chosen = limit_bytes, {}
    for index in sorted(range(len(sources.files)), key=lambda index: _lot(seed, index)):
        file = sources.files[index]
        if left > 0:
            chosen[index] = file if file.size <= left else File(file.path, file.size, file.named, take=left)
            left -= file.size
    return Sources([chosen[index] for index in sorted(chosen)], sources.skipped)


def _lot(seed: int, index: int) -> bytes:
    return hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()


def standard_library() -> list[Path]:
    """The .py files of the running interpreter's own standard library: no tests, no installed packages. About 12 MB.

    Raises DataError if the interpreter has no such files (one that lives in a single archive).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", *NOT_FOR_READING}
    files = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if (
            left_out.isdisjoint(parts)
            and not parts[-1].startswith("_sysconfigdata")
            and not _not_text(path, whole=True)
        ):
            files.append(path)
    if not files:
        raise DataError(f"expected Python's own source in {root}, got none.", "Name a text file, or a folder of them.")
    return files


def unreadable(path: Path, error: OSError) -> DataError:
    """The user's side of an OSError: nothing there, not allowed, or what the system says."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DataError(f"expected a file or folder, got {shown(path)}, which does not exist.", "Check the spelling.")
    if isinstance(error, PermissionError):
        return DataError(
            f"expected to read {shown(path)}, got no permission.", "Change its permissions, or leave it out."
        )
    return DataError(f"expected to read {shown(path)}, got: {error.strerror or error}.", "Check the path and the disk.")


def shown(path: Path) -> str:
    """A path as text that can be stored and printed, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def require_no_run(folder: Path) -> None:
    """Raise DataError for a run or a prepared dataset that is named as text."""
    if _holds(folder, _RUN):
        raise DataError(
            f"expected text, got a run in {shown(folder)}.",
            f"Go on with it: {command('resume', shown(folder))}. Begin with its weights: pretrain TEXT --from.",
        )
    if _holds(folder, _DATASET):
        raise DataError(
            f"expected text, got a prepared dataset in {shown(folder)}.",
            "Name the text that it was made from; `lightwell data show` says which. Only pretrain takes datasets.",
        )


def _is_made_by_a_tool(folder: Path) -> bool:
    return folder.name in NOT_FOR_READING or any(_holds(folder, marks) for marks in _MARKS_OF_TOOLS)


def _holds(folder: Path, names: Sequence[str]) -> bool:
    return all((folder / name).exists() for name in names)


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))


def _not_text(path: Path, whole: bool = False) -> str:
    """Why a file is not text, as words that follow "got"; "" if it is. Judged by its suffix and first bytes; `whole`:
    by up to a block of it."""
    with open(path, "rb") as file:
        head = file.read(SNIFFED)
        if whole and b"\0" not in head:
            head += file.read(BLOCK)
    if len(head) < SNIFFED and not head.strip(b" \t\r\n\f\v\xef\xbb\xbf"):
        return "an empty file" if not head else "a file of blanks"
    if head.startswith(_UTF32_MARKS):  # of which one begins as UTF-16's
        return "UTF-32"
    if head.startswith(_UTF16_MARKS):
        return "UTF-16"
    if b"\0" in head or head.startswith((b"%PDF-", b"{\\rtf")):
        return "a binary file"
    if path.suffix.lower() in LANGUAGES and not whole:
        return ""  # it says that it is text: if it is not UTF-8, reading it will say where
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
    except UnicodeDecodeError:
        return "neither UTF-8 nor a known kind of text"
    return ""


def _summary(skipped: Sequence[tuple[str, str]]) -> str:
    """How many for each reason: 3 skipped (hidden); 1 skipped (a binary file)."""
    counts: dict[str, int] = {}
    for _, reason in skipped:
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(f"{count} skipped ({reason})" for reason, count in sorted(counts.items()))
