"""More of the library's functions: looking at presets, plans, datasets and runs, and carrying models in and out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from lightwell.beginning import (
    Request,
    of_vocabulary,
    open_or_prepare,
    open_prepared,
    plan_run,
    read_request,
    require_kind,
    seconds_left,
    with_budget,
)
from lightwell.config.presets import PRESETS
from lightwell.config.presets import preset as read_preset
from lightwell.config.run import RunConfig, changed, parse, to_raw
from lightwell.data.dataset import Dataset, is_dataset
from lightwell.data.prepare import prepare
from lightwell.data.sources import collect, shown
from lightwell.errors import RunError, UserError
from lightwell.files.translate import os_errors
from lightwell.model.count import flops_per_token, parameters
from lightwell.planner.choose import Choice, choose
from lightwell.planner.fit import require_memory, rows_at_once, step_memory
from lightwell.planner.reading import BYTES_PER_TOKEN, USUALLY, slowness, vocab_size_for
from lightwell.planner.shelf import all_keys, explain_keys
from lightwell.planner.step_time import measure_step_seconds
from lightwell.planner.text import describe, typical_text
from lightwell.runtime.device import Device, choose_device
from lightwell.runtime.peak import measure_peak_flops
from lightwell.runtime.threads import set_threads
from lightwell.store.checkpoint import FOLDER as CHECKPOINTS
from lightwell.store.checkpoint import checkpoint_manifest, write_checkpoint
from lightwell.store.checkpoints import list_checkpoints, pin, step_of, verify_checkpoint
from lightwell.store.database import RunDatabase
from lightwell.store.run_folder import CONFIG, DATABASE, TOKENIZER, create, is_run, open_run, require_free
from lightwell.tokenizer.load import load_tokenizer
from lightwell.trained import (
    Progress,
    Run,
    Text,
    as_paths,
    config_of,
    data_of,
    held_out_figures,
    load,
    metrics_of,
    quiet,
    recorded,
    require_config,
    require_sizes,
    require_tokenizer,
)

LOOKED_AT = 8_000_000  # bytes of a long text that `plan` reads


def list_presets() -> list[dict[str, Any]]:
    """Each preset with its sizes and parameters."""
    rows = []
    for name in PRESETS:
        model = parse(read_preset(name)).model.complete()
        sizes = {key: getattr(model, key) for key in ("n_layers", "emb_dim", "n_heads", "context_length", "vocab_size")}
        rows.append({"name": name, "family": model.family, "parameters": parameters(model)["total"], **sizes})
    return rows


def preset_toml(name: str) -> str:
    """A preset as TOML that `--config` reads."""
    return tomli_w.dumps(read_preset(name))


def explain_preset(name: str | None = None) -> list[dict[str, Any]]:
    """For each key of a preset: its value, what it means, what it costs in this model, what doubling it does. None:
    for each key that a config may have its value where it is left out, and what it means."""
    return all_keys() if name is None else explain_keys(read_preset(name))


def prepare_dataset(
    text: Text | None,
    out: str | Path,
    *,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    val: Text | None = None,
    limit_bytes: int | None = None,
    seed: int = 0,
    progress: Any = None,
) -> Dataset:
    """Make a dataset from text (none: Python's own source). `tokenizer`: a kind, or the path of one to use as it is."""
    known = tokenizer in ("bpe", "bytes", "chars")
    if vocab_size is not None and tokenizer not in ("bpe", "chars"):
        raise UserError(f"expected a size for a vocabulary that is learned, got one for {tokenizer}.", "Leave it out.")
    return prepare(
        as_paths(text),
        Path(out),
        tokenizer=tokenizer if known else load_tokenizer(tokenizer),
        vocab_size=vocab_size,
        val=None if val is None else as_paths(val),
        limit_bytes=limit_bytes,
        seed=seed,
        progress=progress,
    )


def find_runs(paths: Sequence[str | Path] | None = None) -> list[Path]:
    """The runs that are named, and for a folder that holds runs those in it; None: those in ./runs, if there are any.
    Raises RunError for what is neither."""
    if paths is None:
        return _runs_in(Path("runs"))
    found = []
    for path in map(Path, paths):
        if is_run(path):
            found.append(path)
        elif inside := _runs_in(path):
            found += inside
        else:
            open_run(path)  # says what it is instead
    return found


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []


def describe_runs(paths: Sequence[str | Path] | None = None) -> list[dict[str, Any]]:
    """Name, state, step and held-out figures of what `find_runs` finds."""
    return [_describe(path) for path in find_runs(paths)]


def _describe(path: Path) -> dict[str, Any]:
    """A row of `describe_runs`; of a run that cannot be opened why, as `said`."""
    try:
        return _described(path)
    except UserError as error:
        none = {"step": 0, "steps": 0, "loss": None, "parameters": None}
        bits = {
            "heldout": {"loss": None, "bits_per_byte": None, "standard_error": None},
            "predicted": {"bits_per_byte": None, "off": None},
        }
        return {"name": path.name, "path": str(path), "state": "broken", "said": error.message, **none, **bits}


def _described(path: Path) -> dict[str, Any]:
    from lightwell.files.lock import holder

    folder = open_run(path, need_checkpoint=False)
    config = config_of(folder)
    metrics, ended, planned = {}, None, config.budget.steps
    with recorded(path) as database:
        unreadable = database is None and (path / DATABASE).is_file()
        if database is not None:
            metrics = {name: database.metrics(name) for name in ("loss", "heldout.loss", "heldout.bits_per_byte")}
            for event in database.events():
                if event["kind"] == "end":
                    ended = event["details"].get("reason")
                elif event["kind"] in ("steps", "extended"):  # it goes on since
                    ended, planned = None, event["details"].get("steps", planned)
    with os_errors(f"read {path}"):
        checkpoints = list_checkpoints(path)
    step = step_of(checkpoints[-1]) if checkpoints else 0
    if holder(path) is not None:
        state = "running"
    elif not checkpoints:
        state = "broken"
    elif unreadable:
        state = "unknown"
    else:
        state = "done" if ended in ("done", "overfitting", "imported") else "stopped"
    said = f"expected to read {path / DATABASE}, got no metrics; the model itself is another file."
    return {
        "name": path.name,
        "path": str(path),
        "state": state,
        "step": step,
        "steps": max(planned or step, step),
        "loss": metrics["loss"][-1][1] if metrics.get("loss") else None,
        **held_out_figures(path, metrics),
        "parameters": parameters(config.model.complete())["total"],
    } | ({"said": said} if unreadable else {})


def run_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value)."""
    open_run(Path(path), need_checkpoint=False)
    return metrics_of(Path(path))


def check_run(path: str | Path) -> list[dict[str, Any]]:
    """Read every byte of a run's checkpoints and data, and hold config, tokenizer and metrics to them: a row each,
    `good` or not, and what was found."""
    path = Path(path)
    rows: list[dict[str, Any]] = []

    def row(what: Path, check: Any) -> None:
        try:
            with os_errors(f"read {what}"):
                check()
            rows.append({"path": str(what), "good": True, "said": ""})
        except (RunError, UserError) as error:
            rows.append({"path": str(what), "good": False, "said": error.message})

    try:
        folder = open_run(path, need_checkpoint=False)
    except RunError as error:
        if not is_run(path):
            raise
        return [{"path": str(path / CONFIG), "good": False, "said": error.message}]
    with os_errors(f"read {path}"):
        checkpoints = list_checkpoints(path)
    for checkpoint in checkpoints:
        row(checkpoint, lambda checkpoint=checkpoint: verify_checkpoint(checkpoint))
    good = [checkpoint for checkpoint, found in zip(checkpoints, rows) if found["good"]]
    newest = good[-1] if good else None
    if newest is None:
        said = "expected a good checkpoint, found none."
        rows.append({"path": str(path / CHECKPOINTS), "good": False, "said": said})
    manifest = checkpoint_manifest(newest) if newest else {}

    def require_own_config() -> None:
        config_of(folder)
        if newest:
            require_sizes(folder, newest)
            require_config(folder, manifest)

    row(path / CONFIG, require_own_config)
    row(path / TOKENIZER, lambda: require_tokenizer(folder, manifest))
    if (path / DATABASE).exists():
        row(path / DATABASE, lambda: RunDatabase(path / DATABASE, read_only=True).close())
    if folder.dataset_path is not None:
        row(folder.dataset_path, lambda: data_of(folder, manifest, verify=True))
    return rows


def pin_checkpoint(path: str | Path, step: int) -> None:
    """Keep a checkpoint for ever. Raises RunError if there is none of that step."""
    open_run(Path(path))
    pin(Path(path), step)


def plan_summary(text: Text | None = None, *, progress: Progress = quiet, **request: Any) -> dict[str, Any]:
    """What a run would take: parameters, memory, FLOPs, tokens and time. `kinds` says how each figure was come by."""
    asked = read_request(text, **request)
    assumed: list[str] = []
    config = with_budget(asked.config, assumed.append)
    device = choose_device(config.runtime.device, config.runtime.dtype)
    set_threads(config)
    choice, peak = _planned(config, asked, device, progress)
    config = choice.config
    model = config.model.complete()
    batch_size = config.train.batch_size
    assert batch_size is not None
    memory = step_memory(config, rows_at_once(config), device)
    flops = flops_per_token(model, model.context_length)["total"]
    per_step = batch_size * model.context_length
    step_seconds = choice.expected.get("step_seconds") or measure_step_seconds(config, device)
    kind = "measured" if step_seconds is not None else "estimated"
    if step_seconds is None:  # too large to try here: from its products, at half of the peak
        step_seconds = per_step * flops / (0.5 * peak)
    budget = config.budget
    tokens = budget.tokens or (budget.steps or 0) * per_step or int(choice.expected.get("tokens", 0))
    if not tokens:  # minutes of a model that could not be tried
        tokens = int(60 * (budget.minutes or 0) / step_seconds) * per_step
    steps = -(-tokens // per_step)
    seconds = steps * step_seconds
    if budget.minutes and (budget.most_tokens is None or tokens < budget.most_tokens):  # the text does not end it
        seconds = 60 * budget.minutes
    return {
        "parameters": parameters(model),
        "memory_bytes": memory,
        "flops_per_token": flops,
        "tokens_per_step": per_step,
        "steps": steps,
        "tokens": steps * per_step,
        "seconds": seconds,
        "device": device.describe(),
        "peak_flops": peak,
        "reasons": assumed + choice.reasons,
        "config": to_raw(config),
        "kinds": {
            "parameters": "exact",
            "memory_bytes": "estimated",
            "flops_per_token": "exact",
            "tokens": "exact" if budget.tokens or budget.steps else kind,
            "seconds": "exact" if seconds == 60 * (budget.minutes or 0) else kind,
            "peak_flops": "measured",
        },
    }


def _planned(config: RunConfig, asked: Request, device: Device, progress: Progress = quiet) -> tuple[Choice, float]:
    """The choice, with nothing left open, and the peak in FLOP/s that was measured for it. A text that is named, or
    trained on for minutes, is looked at, a part of a long one."""
    peak, began = measure_peak_flops(device), time.perf_counter()
    if asked.text and len(asked.text) == 1 and is_dataset(Path(asked.text[0])):
        dataset = open_prepared(Path(asked.text[0]), config)
        require_kind(asked, dataset.tokenizer, dataset.path)
        return plan_run(config, dataset, device, None, peak, began), peak
    has_text = bool(asked.text) or config.model.missing()
    n_bytes = collect(as_paths(asked.text)).n_bytes if has_text else 10**9
    n_bytes = min(n_bytes, config.data.limit_bytes or n_bytes)
    seconds = 60 * config.budget.minutes if config.budget.minutes else None
    if asked.text or (has_text and seconds):
        read = min(n_bytes, LOOKED_AT)
        slower = USUALLY if config.model.vocab_size or not seconds else slowness(config, device, peak, seconds)
        size = vocab_size_for(config, n_bytes, peak, seconds, slower)  # as of the whole
        part = changed(config, data={"limit_bytes": read}, model={"vocab_size": size})
        with tempfile.TemporaryDirectory() as parent:
            dataset = open_or_prepare(asked.text, Path(parent), part, device, None, peak, quiet, progress)
            text, vocab_size = describe(dataset), dataset.tokenizer.vocab_size
            said = of_vocabulary(config.model.vocab_size, dataset.tokenizer)
        text = replace(text, tokens=int(text.tokens * n_bytes / read))
        config = changed(config, model={"vocab_size": vocab_size})
        choice = choose(config, vocab_size, text, device, peak, seconds_left(config, began))
        return replace(choice, said=said | choice.said), peak
    vocab_size = vocab_size_for(config, n_bytes, peak, None)
    text = typical_text(max(1, int(n_bytes / BYTES_PER_TOKEN)))
    choice = choose(changed(config, model={"vocab_size": vocab_size}), vocab_size, text, device, peak, seconds)
    if choice.said:
        choice.said["unnamed"] = "No text was named: the prediction is for typical prose and code."
    return choice, peak


def export_run(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a run as a HuggingFace folder and compare the logits. `said`: the verdict in words."""
    from lightwell.interop.huggingface import compare_with_transformers, export_model

    run = load(path, device="cpu")
    folder = export_model(run.model_config, run.model.state_dict(), run.tokenizer, Path(out))
    found = compare_with_transformers(folder, run.model)
    return {"folder": str(folder), "said": found.verdict, "equal": found.equal, "max_relative": found.max_rel}


def import_run(folder: str | Path, out: str | Path) -> Run:
    """Another project's model as a run at step 0."""
    from lightwell.interop.huggingface import import_model

    folder, out = Path(folder), Path(out)
    require_free(out, resumable=False)  # before gigabytes are read
    config, weights, tokenizer = import_model(folder)
    if tokenizer is None:
        raise UserError(f"expected tokenizer files beside the model in {folder}, found none.", "A run needs one.")
    raw = {"model": config.model_dump(exclude_none=True), "run": {"name": shown(Path(out.name))}}
    write_checkpoint(out, 0, weights, {}, {}, {"tokenizer": tokenizer.hash})
    create(out, to_raw(parse(raw)), {"import": {"folder": shown(folder)}}, tokenizer)  # its config makes it a run
    with RunDatabase(out / DATABASE) as database:
        database.add_event(0, "end", {"reason": "imported"})
    return load(out, device="cpu")


def profile_training(text: Text | None = None, *, trace: str | Path = "lightwell-trace.json", **request: Any) -> Any:
    """Profile ten steps of what `pretrain` would train: see `planner.profile.profile_steps`."""
    from lightwell.planner.profile import profile_steps

    asked = read_request(text, **request)
    config = with_budget(asked.config, quiet)
    device = choose_device(config.runtime.device, config.runtime.dtype)
    set_threads(config)
    choice, _ = _planned(config, asked, device)
    require_memory(choice.config, device)
    return profile_steps(choice.config, device, Path(trace))
