"""A run's folder: what was asked, what was decided, and the tokenizer; beside them the checkpoints and the metrics.

    config.toml      format version, [request] (what the user asked), every section resolved
    tokenizer.json
    dataset/         if it was made for this run; otherwise the config holds the path of a prepared one
    checkpoints/     at least one
    run.sqlite       metrics, events, samples
    lock             held by the process that trains
    .attempt         while the run is being made: what lies here is ours

The first two and one checkpoint make a run; everything else may be missing. config.toml is written last, so a folder
that has one is complete. Whoever opens a run may have got it from a stranger: sizes and depths are limited, and links
that lead out of the folder are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightwell.config.load import is_utf8
from lightwell.errors import DamagedError, RunError
from lightwell.files.atomic import make_dirs, write_file
from lightwell.files.limits import read_toml
from lightwell.files.paths import command, safe_join
from lightwell.files.translate import os_errors
from lightwell.store.checkpoint import FOLDER
from lightwell.store.checkpoints import list_checkpoints

if TYPE_CHECKING:
    from lightwell.tokenizer.base import Tokenizer

FORMAT = 1
CONFIG, TOKENIZER, DATASET, DATABASE = "config.toml", "tokenizer.json", "dataset", "run.sqlite"
ATTEMPT = ".attempt"

# What turns a config.toml of an older format into one of the next: {0: function of the table, ...}.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

PUT_BACK = "Put back a copy of it; weights, tokenizer and metrics are files of their own."

_OURS = (TOKENIZER, DATASET, FOLDER, "lock")  # what a run that was killed while it began may have left


@dataclass(frozen=True)
class RunFolder:
    """An opened run. `config`: the resolved sections; `request`: what the user asked; both plain dictionaries."""

    path: Path
    config: dict[str, Any]
    request: dict[str, Any]
    format_version: int  # as found in the folder, before any upgrade
    named_dataset: Path | None = None  # a prepared dataset that lies elsewhere

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from lightwell.tokenizer.load import load_tokenizer  # a listing of runs needs no tokenizer

        return load_tokenizer(safe_join(self.path, TOKENIZER))

    @property
    def dataset_path(self) -> Path | None:
        """The data the run was trained on: the one named, or the run's own; None if there is neither (imported)."""
        if self.named_dataset:
            return self.named_dataset
        own = safe_join(self.path, DATASET)
        return own if own.is_dir() else None


def create(
    run: Path,
    config: Mapping[str, Any],
    request: Mapping[str, Any],
    tokenizer: Tokenizer,
    dataset: Path | None = None,
) -> RunFolder:
    """Make a run folder and return it opened. `config`: resolved sections; `request`: what the user asked; `dataset`:
    where the data is, unless it is in the run itself.

    The folder may hold a dataset and what an earlier attempt left, nothing else. Keys that are None are left out.
    Raises RunError if there is a run already or something that is not ours.
    """
    require_free(run)
    with os_errors(f"make the run {run}"):
        make_dirs(run / FOLDER)
        tokenizer.save(run / TOKENIZER)
        write_config(run, config, request, dataset)
    return open_run(run, need_checkpoint=False)


def require_free(run: Path, resumable: bool = True) -> None:
    """Raise RunError unless `run` is missing, empty, or left by a run that ended before it had a config. The sentence
    says how to go on with one that is `resumable`."""
    if not run.exists():
        return
    if not run.is_dir():
        raise RunError(f"expected a folder at {run}, got a file.", "Choose another --out.")
    if (run / CONFIG).exists():
        raise RunError(
            f"expected a new folder for the run, got {run}, which holds one.",
            f"Choose another --out, or go on with it: `{command('resume', run)}`."
            if resumable
            else "Choose another --out.",
        )
    names = (path.name for path in run.iterdir())
    others = sorted(name for name in names if not name.startswith((".", DATABASE)) and name not in _OURS)
    if others:
        raise RunError(
            f"expected a new or empty folder for the run, got {run} with {others[0]}.", "Choose another --out."
        )


def write_config(run: Path, config: Mapping[str, Any], request: Mapping[str, Any], dataset: Path | None = None) -> None:
    """Write config.toml in one indivisible step; also to change one, e.g. when a run is extended."""
    import tomli_w

    elsewhere = dataset is not None and dataset.absolute() != (run / DATASET).absolute()
    named = str(dataset.absolute()) if dataset and elsewhere else None
    if named and not is_utf8(named):
        raise RunError(f"expected a dataset whose path is UTF-8, got {named!r}.", "Rename it.")
    table = {"format": FORMAT, "dataset": named, "request": request, **config}
    head = "# A Lightwell run. [request] is what was asked; the rest is what it came to.\n"
    write_file(run / CONFIG, (head + tomli_w.dumps(_without_none(table))).encode())


def open_run(path: Path, *, need_checkpoint: bool = True) -> RunFolder:
    """Open a run folder. Checkpoints are counted, not verified (`checkpoints.newest_good` does).

    Raises RunError if it is not a run, naming what is missing, and for a format this version does not know;
    DamagedError for a config that is not TOML or a link that leads out.
    """
    path = Path(path)
    _require_parts(path, need_checkpoint)
    with os_errors(f"read {path}"):
        table = read_toml(safe_join(path, CONFIG), hint=PUT_BACK)
    version = table.get("format", "none")
    table = _upgraded(table, path)
    request, dataset = table.get("request", {}), table.get("dataset")
    if not isinstance(request, dict) or not isinstance(dataset, str | None):
        raise DamagedError(f"expected a table [request] and a path as dataset in {path / CONFIG}, got something else.")
    config = {key: value for key, value in table.items() if key not in ("format", "request", "dataset")}
    return RunFolder(path, config, request, version, Path(dataset) if dataset else None)


def remove_if_empty(run: Path) -> None:
    """Remove the folder of an attempt that came to nothing."""
    if {path.name for path in run.iterdir()} <= {ATTEMPT, "lock"}:
        for name in (ATTEMPT, "lock"):
            (run / name).unlink(missing_ok=True)
        run.rmdir()


def is_run(path: Path) -> bool:
    """Whether `path` looks like a run: a folder with a config. Cheap, and true for broken ones: for listings. Not for a
    folder that may not be looked into."""
    return os.access(path, os.X_OK) and (path / CONFIG).is_file()


def _require_parts(path: Path, need_checkpoint: bool) -> None:
    """Raise RunError naming the first thing that `path` lacks for being a run."""
    hint, again = (
        "`lightwell runs` lists what is in runs/.",
        "Start it again with `lightwell pretrain ... --out` and the same arguments.",
    )
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise RunError(f"expected a run folder, got {path}, which {what}.", hint)
    for name in (CONFIG, TOKENIZER):
        if not safe_join(path, name).is_file():
            begun = (path / ATTEMPT).exists() or (path / DATASET).exists()
            raise RunError(f"expected a run folder, got {path}, which has no {name}.", again if begun else hint)
    if need_checkpoint and not list_checkpoints(path):
        raise RunError(f"expected a run with a checkpoint, got {path}, which has none yet.", again)


def _upgraded(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """The table in today's format, through as many upgrades as it takes. Raises RunError for a format without one."""
    version = table.get("format")
    if version is None:
        raise DamagedError(f"expected the config of a run in {path / CONFIG}, got no format in it.", PUT_BACK)
    while version != FORMAT:
        if not isinstance(version, int) or version not in UPGRADES:
            raise RunError(
                f"expected a run of format {FORMAT} or older, got format {table.get('format')!r} in {path / CONFIG}.",
                "It was written by another version of Lightwell: use that one.",
            )
        table = {**UPGRADES[version](table), "format": version + 1}
        version += 1
    return table


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the keys whose value is None, for TOML has no word for it."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
