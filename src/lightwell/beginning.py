"""From what the user asked to the first step: the config merged, the text prepared, the rest planned, the folder made.

A run may begin with the weights of another one (`--from`): then its sizes are that one's, and nothing is predicted.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightwell.config.load import merge, parse_settings, read_toml, require_utf8
from lightwell.config.presets import preset as read_preset
from lightwell.config.run import RunConfig, changed, differences, parse, to_raw
from lightwell.data.dataset import Dataset, is_dataset, open_dataset
from lightwell.data.prepare import prepare
from lightwell.data.sources import collect, standard_library
from lightwell.errors import DamagedError, RunError, UserError
from lightwell.files.paths import command
from lightwell.files.space import require_space
from lightwell.files.translate import os_errors
from lightwell.planner.choose import LONG_RUN, Choice, choose, with_rates
from lightwell.planner.fit import require_memory, saving_copy, with_rows
from lightwell.planner.ladder import rungs_for
from lightwell.planner.reading import (
    LEAST_READ,
    TYPICAL_VOCAB_SIZE,
    USUALLY,
    bytes_to_read,
    slowness,
    vocab_size_for,
)
from lightwell.planner.text import describe
from lightwell.runtime.device import Device
from lightwell.runtime.peak import measure_peak_flops
from lightwell.show.units import size
from lightwell.store.checkpoint import FOLDER as CHECKPOINTS
from lightwell.store.database import RunDatabase
from lightwell.store.run_folder import ATTEMPT, CONFIG, DATABASE, DATASET, create, is_run, open_run, require_free
from lightwell.tokenizer.base import Tokenizer
from lightwell.trained import Progress, Run, Text, as_paths
from lightwell.training.assemble import begins_with_pairs

Say = Callable[[str], None]
DEFAULT_MINUTES = 10.0
GIVEN = "given"  # a section of the request that is kept: where text and weights came from
WEIGHTLESS = {"drop_rate", "context_length"}  # keys of a model that may change while its weights stay


@dataclass
class Request:
    """What the user asked of `pretrain`: the text and the layers of config, not yet resolved."""

    text: list[Path | str] | None
    raw: dict[str, Any]
    weights_from: str | Path | None = None

    @property
    def config(self) -> RunConfig:
        return parse(self.raw)

    @property
    def given(self) -> dict[str, Any]:
        """Where the text lies, and the run to begin from: kept with the request, so that another is told from it."""

        def place(path: Path | str) -> str:
            return os.path.abspath(path).encode(errors="backslashreplace").decode()

        text = ["the standard library"] if self.text is None else [place(path) for path in self.text]
        return {"text": text} | ({"from": place(self.weights_from)} if self.weights_from else {})


def read_request(
    text: Text | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    minutes: float | None = None,
    tokens: int | None = None,
    steps: int | None = None,
    val: Text | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> Request:
    """Merge preset, file, flags and settings, later over earlier, and check the result. Raises ConfigError."""
    flags: dict[str, dict[str, Any]] = {
        "budget": {"minutes": minutes, "tokens": tokens, "steps": steps},
        "run": {"seed": seed},
        "runtime": {"device": device},
        "data": {"val": None if val is None else [str(path) for path in as_paths(val)]},
    }
    given = {name: {key: v for key, v in section.items() if v is not None} for name, section in flags.items()}
    file = read_toml(Path(config)) if config else {}
    shelf = read_preset(preset) if preset else {}
    if given["budget"]:  # a flag replaces the budget of preset and file instead of joining it
        for layer in (shelf, file):
            parse({"budget": layer.pop("budget", {})})  # a typo in it is one all the same
    if minutes is not None:  # a preset's batch is for the tokens that it was made for; minutes are planned
        shelf.get("train", {}).pop("batch_size", None)
    raw = merge(
        shelf,
        file,
        {name: section for name, section in given.items() if section},
        parse_settings(list(settings)),
    )
    require_utf8(raw)
    request = Request(None if text is None else as_paths(text), raw)
    _ = request.config  # reports every problem now
    return request


def begin_run(
    path: Path,
    asked: Request,
    config: RunConfig,
    device: Device,
    parent: Run | None,
    began: float,
    say: Say,
    progress: Progress,
    processes: int,
) -> dict[str, Any]:
    """Prepare the data, decide what is still open, make the run's folder; what training needs of that, as JSON."""
    if is_run(path) and not has_begun(path):
        (path / ATTEMPT).touch()
        (path / CONFIG).unlink()  # of an attempt that ended before its first checkpoint: it begins again
    elif not (path / DATASET).exists():
        (path / ATTEMPT).touch()
    peak = measure_peak_flops(device)
    if parent:
        own = config.model.model_dump(include=WEIGHTLESS, exclude_none=True)
        config = changed(config, model=parent.model_config.model_dump() | own)
    smallest = next(iter(rungs_for(config, config.model.vocab_size or TYPICAL_VOCAB_SIZE, processes).values()))
    one_by_one = with_rows(smallest, smallest.train.batch_size or 1, smallest.train.micro_batch_size or 1)
    require_memory(one_by_one, device, processes)  # before a text is prepared for it
    dataset = open_or_prepare(asked.text, path, config, device, parent, peak, say, progress, processes)
    require_kind(asked, dataset.tokenizer, dataset.path)
    say(dataset.summary())
    choice = plan_run(config, dataset, device, parent, peak, began, processes)
    if dataset.path == path / DATASET and parent is None:
        choice = replace(choice, said=of_vocabulary(config.model.vocab_size, dataset.tokenizer) | choice.said)
    for reason in choice.reasons:
        say(reason)
    if parent is None and begins_with_pairs(choice.config.model.complete(), choice.config):
        say("Embeddings and head begin with the pairs of tokens counted in the text.")
    require_memory(choice.config, device, processes)
    require_space(path, saving_copy(choice.config))
    request = asked.raw | {GIVEN: asked.given}
    create(path, to_raw(choice.config), request, dataset.tokenizer, dataset.path)
    (path / ATTEMPT).unlink(missing_ok=True)
    with RunDatabase(path / DATABASE) as database:
        database.delete_after(-1)  # what an attempt left that ended before it trained
        if choice.expected:
            database.add_event(0, "plan", choice.expected)
    return {
        "config": to_raw(choice.config),
        "dataset": str(dataset.path),
        "peak_flops": peak,
        "step_seconds": choice.expected.get("step_seconds"),
    }


def can_go_on(path: Path, asked: Request, force: bool, say: Say) -> bool:
    """Whether `path` holds a run that was asked for the same and goes on; a new one can begin there if not.

    Raises RunError showing the differences if it was asked for otherwise, and for a folder of something else.
    """
    if not is_run(path):
        require_free(path)
        return False
    if not has_begun(path):
        require_ours(path)
        return False  # another process may be about to train here: the lock will tell
    before = open_run(path, need_checkpoint=False).request
    now = asked.raw | ({GIVEN: asked.given} if GIVEN in before else {})  # runs of before did not keep that
    others = differences(before, now)
    if others and not force:
        raise RunError(
            f"expected {path} to be free or a run asked for the same, got differences: {'; '.join(others)}.",
            f"Go on as it was with `{command('resume', path)}`, or choose another --out.",
        )
    if others:
        say(f"Going on with {path} as it was first asked for; ignored: {'; '.join(others)}")
    return True


def require_ours(path: Path) -> None:
    """Raise RunError for a config.toml that no run has written: it would be replaced."""
    try:
        open_run(path, need_checkpoint=False)
    except (RunError, DamagedError):
        raise RunError(
            f"expected {path} to be free or a run, got a {CONFIG} there that no run has written.",
            "Choose another --out.",
        ) from None


def has_begun(path: Path) -> bool:
    """Whether the run ever had a checkpoint, good or broken."""
    return any((path / CHECKPOINTS).glob("step-*"))


def with_budget(config: RunConfig, say: Say) -> RunConfig:
    """The config with a budget: ten minutes if none was asked for."""
    budget = config.budget
    if budget.steps or budget.tokens or budget.minutes:
        return config
    say(f"No budget given: training for {DEFAULT_MINUTES:g} minutes (--minutes, --tokens or --steps choose another).")
    return changed(config, budget={"minutes": DEFAULT_MINUTES})


def open_or_prepare(
    text: list[Path | str] | None,
    run: Path,
    config: RunConfig,
    device: Device,
    parent: Run | None,
    peak: float,
    say: Say,
    progress: Progress,
    processes: int = 1,
) -> Dataset:
    """The prepared dataset that was named, or one made from the text in the run's own folder, of which so many
    processes will consume it. Raises UserError for settings that prepared data does not heed any more."""
    if text and len(text) == 1 and is_dataset(Path(text[0])):
        dataset = open_prepared(Path(text[0]), config, verify=True)
        if parent and dataset.tokenizer.hash != parent.tokenizer.hash:
            raise UserError(
                f"expected data prepared with the tokenizer of {parent.path}, got another one in {text[0]}.",
                "Give the text itself instead of the prepared data.",
            )
        return dataset
    if (run / DATASET).exists():
        if not (run / ATTEMPT).exists():
            raise RunError(
                f"expected {run} to be free, got a folder {DATASET} there that this run has not made.",
                "Choose another --out.",
            )
        shutil.rmtree(run / DATASET)  # left by an attempt that ended before it trained
    sources = standard_library() if text is None else text
    tokenizer: Any = parent.tokenizer if parent else config.tokenizer.kind
    if not parent and config.tokenizer.kind == "gpt2" and config.tokenizer.path:
        from lightwell.tokenizer.gpt2 import load_gpt2

        tokenizer = load_gpt2(Path(config.tokenizer.path))
    seconds = 60 * config.budget.minutes if config.budget.minutes else None
    n_bytes = collect(sources).n_bytes
    largest = max(n_bytes, collect(config.data.val).n_bytes if config.data.val else 0)
    open_vocab = tokenizer == "bpe" and not config.model.vocab_size
    may_read_less = largest > LEAST_READ and not config.data.limit_bytes
    slower = slowness(config, device, peak, seconds) if seconds and (open_vocab or may_read_less) else USUALLY
    vocab_size = None
    if tokenizer == "bpe":
        read = min(n_bytes, config.data.limit_bytes or n_bytes)
        vocab_size = vocab_size_for(config, read, peak, seconds, slower, processes)
    ids = vocab_size or config.model.vocab_size or TYPICAL_VOCAB_SIZE
    limit = config.data.limit_bytes or bytes_to_read(config, largest, ids, peak, seconds, slower, processes)
    if limit is not None and limit < n_bytes:
        why = "as asked" if config.data.limit_bytes else "enough for the time"
        say(f"Reading {size(limit)} of {size(n_bytes)} of text, chosen by the seed: {why}.")
    return prepare(
        sources,
        run / DATASET,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        val=config.data.val or None,
        limit_bytes=limit,
        seed=config.run.seed,
        progress=progress,
    )


def open_prepared(path: Path, config: RunConfig, verify: bool = False) -> Dataset:
    """A dataset that was prepared earlier. Raises UserError for settings that it does not heed any more."""
    if config.data.val or config.data.limit_bytes:
        raise UserError(
            f"expected text beside {'--val' if config.data.val else 'data.limit_bytes'}, got prepared data in {path},"
            " which has its own held-out part and length.",
            "Prepare the text anew with `lightwell prepare TEXT --val HELD_OUT --out FOLDER`.",
        )
    return open_dataset(path, verify=verify)


def plan_run(
    config: RunConfig,
    dataset: Dataset,
    device: Device,
    parent: Run | None,
    peak: float,
    began: float,
    processes: int = 1,
) -> Choice:
    """Decide what is still open. `peak`: the device's matrix-product peak in FLOP/s. Raises UserError for a vocabulary
    that is larger than the config allows."""
    vocab_size = dataset.tokenizer.vocab_size
    if parent:
        config = with_rates(config, LONG_RUN, math.inf)  # it has learned already, and should not forget
    if config.model.vocab_size is not None and vocab_size > config.model.vocab_size:
        raise UserError(
            f"expected a vocabulary of at most {config.model.vocab_size} tokens, got a tokenizer of {vocab_size}.",
            "Leave model.vocab_size out, and the tokenizer decides.",
        )
    text = describe(dataset)
    config = changed(config, model={"vocab_size": vocab_size})
    unpredicted = f"Begins with the weights of {parent.path}; of such a run nothing is predicted." if parent else ""
    return choose(config, vocab_size, text, device, peak, seconds_left(config, began), processes, unpredicted)


def of_vocabulary(most: int | None, tokenizer: Tokenizer) -> dict[str, str]:
    """A sentence where the vocabulary learned here is smaller than was asked for."""
    if tokenizer.kind != "bpe" or tokenizer.vocab_size >= (most or 0):
        return {}
    said = f"A vocabulary of {tokenizer.vocab_size:,}, not {most:,}: the text has no more pairs that occur twice."
    return {"vocabulary": said}


def require_same_shape(parent: Run, asked: dict[str, Any]) -> None:
    """Raise UserError where `asked`, a request's model section, wants another model than the parent's weights are."""
    has = parent.model_config.model_dump()
    free = WEIGHTLESS if parent.model_config.family == "modern" else WEIGHTLESS - {"context_length"}  # learned there
    others = [f"{key} = {value}" for key, value in asked.items() if key not in free and has.get(key) != value]
    if others:
        raise UserError(
            f"expected the model of {parent.path} beside --from, whose weights these are, got {', '.join(others)}.",
            "Leave these settings (or the preset that brings them) out, or begin anew without --from.",
        )


def require_kind(asked: Request, tokenizer: Tokenizer, whose: Path) -> None:
    """Raise UserError where another kind of tokenizer was asked for than what is there already."""
    kind = asked.raw.get("tokenizer", {}).get("kind")
    if kind not in (None, tokenizer.kind):
        raise UserError(
            f"expected tokenizer.kind = {tokenizer.kind}, which is that of {whose}, got {kind}.",
            "Leave it out, or begin anew from the text itself.",
        )


def weights_of(parent: Run) -> dict[str, Tensor]:
    """Its weights, without rows for tokens that its tokenizer does not have: other projects round vocabularies up."""
    V, tables = parent.tokenizer.vocab_size, {"tok_emb.weight", "head.weight"}
    return {name: weight[:V] if name in tables else weight for name, weight in parent.model.state_dict().items()}


def seconds_left(config: RunConfig, began: float) -> float | None:
    """Of a budget of minutes that began at `began`; None for another budget."""
    minutes = config.budget.minutes
    return max(1.0, 60 * minutes - (time.perf_counter() - began)) if minutes else None


def make_run_folder(path: Path) -> None:
    """Make the folder. Raises RunError if a file is in the way, UserError if there is no permission."""
    try:
        with os_errors(f"make the run {path}"):
            path.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        raise RunError(
            f"expected a folder above {path}, got a file at {error.filename}.", "Choose another --out."
        ) from None
    except FileNotFoundError:
        raise RunError(f"expected a place for folders, got {path}.", "Choose another --out.") from None


def new_run_path(name: str, parent: Path = Path("runs")) -> Path:
    """`runs/<name>-<n>` with the first n that is free."""
    n, name = 1, as_name(name)
    while (parent / f"{name}-{n}").exists():
        n += 1
    return parent / f"{name}-{n}"


def name_of(text: list[Path | str] | None) -> str:
    """A run's name from its text: the first file's or folder's."""
    if text is None:
        return "python"
    name = Path(text[0]).resolve().name if text else "run"
    return as_name(name.removesuffix(Path(name).suffix))


def as_name(words: str) -> str:
    """Words as the name of a folder, within its parent."""
    return re.sub(r"[^\w.-]+", "-", words).strip("-.")[:60] or "run"
