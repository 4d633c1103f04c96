"""The library's functions: each composes the rooms into one thing a user wants. Commands call these.

pretrain   text -> trained run          load      a run folder -> Run, ready to generate and evaluate
resume     go on with a run             Run       .config .tokenizer .model .metrics .generate .evaluate

What comes before the first step is in beginning.py, what comes after the last one in trained.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lightwell.beginning import (
    Say,
    begin_run,
    can_go_on,
    make_run_folder,
    name_of,
    new_run_path,
    read_request,
    require_kind,
    require_same_shape,
    weights_of,
    with_budget,
)
from lightwell.config.run import RunConfig, parse
from lightwell.data.dataset import Dataset, open_dataset
from lightwell.data.prefetch import Prefetch
from lightwell.errors import StoppedEarly, UserError
from lightwell.files.lock import lock_folder
from lightwell.files.paths import command
from lightwell.generation.samples import Samples
from lightwell.glass.pulse import Pulse
from lightwell.glass.snapshot import Snapshot
from lightwell.runtime.device import Device, choose_device
from lightwell.runtime.observer import Observer
from lightwell.runtime.peak import measure_peak_flops
from lightwell.runtime.threads import set_threads
from lightwell.runtime.world import World, join_world
from lightwell.store.checkpoint import BEGIN_AGAIN, Checkpoint
from lightwell.store.checkpoints import list_checkpoints
from lightwell.store.database import RunDatabase
from lightwell.store.run_folder import DATABASE, open_run, remove_if_empty
from lightwell.trained import (
    Progress,
    Run,
    Text,
    config_of,
    data_of,
    load,
    quiet,
    require_config,
    require_sizes,
    require_tokenizer,
)
from lightwell.training.assemble import assemble
from lightwell.training.loop import BAD_NUMBERS
from lightwell.training.loop import run as train
from lightwell.training.outcome import hand_over, outcome_tokens
from lightwell.training.record import NoRecord
from lightwell.training.saver import read_for_all

PULSES = 50  # measurements of every layer over a run, or fewer:
PULSE_SHARE = 0.02  # of its time at most, unless it was said how often
SNAPSHOTS = "snapshots"  # of a run's folder: whole steps to look at, if they were asked for


def pretrain(
    text: Text | None = None,
    *,
    out: str | Path | None = None,
    weights_from: str | Path | None = None,
    observers: Sequence[Observer] = (),
    stop: Callable[[], str | None] = lambda: None,
    say: Say = quiet,
    progress: Progress = quiet,
    force: bool = False,
    began: float | None = None,
    **request: Any,
) -> Run:
    """Train a GPT on text and return the run. Without text: on the standard library of the running Python.

    Budget: `minutes`, `tokens` or `steps` (none: 10 minutes). Also `preset`, `config`, `settings`, `val`, `seed`,
    `device`, as in `read_request`. out: the run's folder; an unfinished run there is continued if it was asked for the
    same. weights_from: a run to begin from. `began`: `time.perf_counter()` of when the minutes began to count.
    Raises UserError for what cannot be done, StoppedEarly if `stop` gave a reason before the end.
    """
    began = time.perf_counter() if began is None else began
    asked = read_request(text, **request)
    asked.weights_from = weights_from
    config = with_budget(asked.config, say)
    if weights_from and config.train.init is not None:
        raise UserError(
            f"expected no train.init beside --from, whose weights are there already, got {config.train.init!r}.",
            "Leave one of the two out.",
        )
    device = choose_device(config.runtime.device, config.runtime.dtype)
    with join_world(device.kind) as world:
        path = Path(world.agree(str(out or new_run_path(config.run.name or name_of(asked.text)))))
        if world.on_main(lambda: can_go_on(path, asked, force, say)):
            say(f"Going on with {path}.")
            go_on(path, device, world, observers=observers, stop=stop, say=say)
            return load(path, device=config.runtime.device)
        made = not path.exists()
        world.on_main(lambda: make_run_folder(path))
        with removed_if_left_empty(path, made and world.is_main), held(path, world, say):
            parent = load(weights_from, device="cpu") if weights_from else None
            set_threads(config, world)  # last: to load sets the usual number
            if parent:
                require_same_shape(parent, asked.raw.get("model", {}))
                require_kind(asked, parent.tokenizer, parent.path)

            def begin() -> dict[str, Any]:
                return begin_run(path, asked, config, device, parent, began, say, progress, world.size)

            begun = world.on_main(begin)
            parent = None  # its weights are read again where they are needed: training may want all the memory
            train_run(
                path, parse(begun["config"]), open_dataset(begun["dataset"]), device, world, observers, stop, say,
                began=began, peak_flops=begun["peak_flops"], step_seconds=begun["step_seconds"],
                weights=(lambda: weights_of(load(weights_from, device="cpu"))) if weights_from else None,
            )  # fmt: skip
    return load(path, device=config.runtime.device)


def resume(
    path: str | Path,
    *,
    extend_steps: int | None = None,
    observers: Sequence[Observer] = (),
    stop: Callable[[], str | None] = lambda: None,
    say: Say = quiet,
) -> Run:
    """Go on with a run from its newest good checkpoint, exactly as if it had never stopped.

    extend_steps: train a finished run for so many steps more; the rate rises again over 1% of them, stays, and falls.
    """
    path = Path(path)
    config = config_of(open_run(path))
    device = choose_device(config.runtime.device, config.runtime.dtype)
    with join_world(device.kind) as world:
        go_on(path, device, world, extend_steps=extend_steps, observers=observers, stop=stop, say=say)
    return load(path, device=config.runtime.device)


def go_on(
    path: Path,
    device: Device,
    world: World,
    *,
    observers: Sequence[Observer],
    stop: Callable[[], str | None],
    say: Say,
    extend_steps: int | None = None,
) -> None:
    """`resume`, among the processes that are there."""
    folder = open_run(path)
    config = config_of(folder)
    with held(path, world, say):
        set_threads(config, world)
        checkpoint = read_for_all(path, world, say)
        require_tokenizer(folder, checkpoint.manifest)
        require_sizes(folder, checkpoint.path)
        require_config(folder, checkpoint.manifest)
        world.on_main(lambda: str(data_of(folder, checkpoint.manifest, verify=True).path))  # every byte, once
        dataset = data_of(folder, checkpoint.manifest)
        train_run(
            path, config, dataset, device, world, observers, stop, say,
            checkpoint=checkpoint, extend_steps=extend_steps, peak_flops=measure_peak_flops(device),
        )  # fmt: skip


@contextmanager
def removed_if_left_empty(path: Path, made: bool) -> Iterator[None]:
    """A run's folder that was `made` for the `with` block goes again after it if nothing is in it."""
    try:
        yield
    finally:
        if made:
            remove_if_empty(path)


@contextmanager
def held(path: Path, world: World, say: Say) -> Iterator[None]:
    """The run's lock, held by the main process for all of them. Where there are no locks, that is said."""
    with ExitStack() as stack:

        def take() -> None:
            lock = stack.enter_context(lock_folder(path))
            if lock.note:
                say(lock.note)

        world.on_main(take)
        yield


def train_run(
    path: Path,
    config: RunConfig,
    dataset: Dataset,
    device: Device,
    world: World,
    observers: Sequence[Observer],
    stop: Callable[[], str | None],
    say: Say,
    *,
    checkpoint: Checkpoint | None = None,
    weights: Callable[[], dict[str, Tensor]] | None = None,
    extend_steps: int | None = None,
    began: float | None = None,
    peak_flops: float | None = None,
    step_seconds: float | None = None,
) -> None:
    """Train to the end, or raise StoppedEarly with the command that goes on. Only the main process is watched."""
    with ExitStack() as stack:
        database: RunDatabase | NoRecord = NoRecord()
        if world.is_main:
            database = stack.enter_context(RunDatabase(path / DATABASE, on_trouble=say))
            if checkpoint:
                database.delete_after(checkpoint.step)
            if checkpoint and "sample" in checkpoint.state.get("owed", ()):
                database.delete_samples(checkpoint.step)
        samples = Samples(
            dataset.tokenizer, config.train.prompts, config.train.sample_tokens, device, database.add_sample
        )
        observers = [samples, *(observers if world.is_main else ())]
        training = assemble(
            path, config, dataset, device, world, database, checkpoint=checkpoint, weights=weights,
            extend_steps=extend_steps, observers=observers, stop=stop, began=began, peak_flops=peak_flops,
            step_seconds=step_seconds,
        )  # fmt: skip
        if isinstance(training.batches, Prefetch):
            stack.enter_context(training.batches)
        pulse_every, pulse_share = config.glass.pulse_every, None
        if pulse_every is None:
            pulse_every, pulse_share = max(10, training.pace.steps(training.state) // PULSES), PULSE_SHARE
        if pulse_every and world.is_main and training.replicas.kind != "sharded":
            pulse = Pulse(database.add_layers, pulse_every, autocast=device.autocast, share=pulse_share)
            observers = training.observers = [*observers, pulse]
        if config.glass.snapshot_every and world.is_main and training.replicas.kind != "sharded":
            snapshot = Snapshot(
                lambda step, t: t.save(path / SNAPSHOTS / f"step-{step:08d}.html", title=f"{path.name}, step {step}"),
                config.glass.snapshot_every,
                autocast=device.autocast,
                compiled=bool(config.runtime.compile),
                on_trouble=lambda sentence: database.add_event(training.state.step, "snapshot", {"error": sentence}),
            )
            (path / SNAPSHOTS).mkdir(exist_ok=True)
            observers = training.observers = [*observers, snapshot]
        try:
            reason = train(training)
        finally:
            for observer in observers:
                observer.at_end()
        step = training.state.step
        if reason in (None, "overfitting"):
            plan = database.events("plan") if isinstance(database, RunDatabase) else []
            if training.state.decided("extended"):
                plan = []  # which was of a shorter run
            tokens = outcome_tokens(step, training.pace.tokens_per_step)
            hand_over(training, tokens, plan[-1]["details"].get("bits_per_byte") if plan else None)
        database.add_event(step, "end", {"reason": reason or "done"})
    if reason not in (None, "overfitting"):
        raise StoppedEarly(
            f"stopped at step {step} of {training.pace.steps(training.state)} ({reason}); saved.",
            BEGIN_AGAIN if reason in BAD_NUMBERS else f"Go on with: {command('resume', path)}",
            {"run": str(path), "step": step, "checkpoint": str(list_checkpoints(path)[-1])},
        )
