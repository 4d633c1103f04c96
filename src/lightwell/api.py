"""The library's functions: each composes the rooms into one thing a user wants. Commands and lessons call these.

pretrain   text -> trained run          load      a run folder -> Run, ready to generate and evaluate
resume     go on with a run             Run       .config .tokenizer .model .metrics .generate .evaluate
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightwell.config.gpt import ModelConfig
from lightwell.config.load import merge, parse_settings, read_toml
from lightwell.config.presets import preset as read_preset
from lightwell.config.run import RunConfig, changed, parse, to_raw
from lightwell.data.dataset import Dataset, is_dataset, open_dataset
from lightwell.data.prefetch import Prefetch
from lightwell.data.prepare import prepare
from lightwell.data.shards import TokenStream
from lightwell.data.sources import collect, standard_library
from lightwell.errors import DamagedError, DataError, RunError, StoppedEarly, TokenizerError, UserError
from lightwell.evaluation.loss import evaluate_stream
from lightwell.evaluation.report import Evaluation
from lightwell.files.lock import lock_folder
from lightwell.files.translate import os_errors
from lightwell.generation.engine import Engine
from lightwell.generation.sample import Sampling
from lightwell.generation.samples import Samples
from lightwell.glass.pulse import Pulse
from lightwell.glass.snapshot import Snapshot
from lightwell.model.build import GPT
from lightwell.model.count import parameters
from lightwell.model.gpt2 import GPT2
from lightwell.model.modern import Modern
from lightwell.planner.choose import LONG, Choice, bytes_to_read, choose, with_rates
from lightwell.planner.fit import require_memory
from lightwell.planner.pilot import look_at
from lightwell.runtime.device import Device, choose_device
from lightwell.runtime.observer import Observer
from lightwell.runtime.peak import measure_peak_flops
from lightwell.runtime.threads import allowed_cpus
from lightwell.runtime.world import World, join_world
from lightwell.store.checkpoint import FOLDER as CHECKPOINTS
from lightwell.store.checkpoint import Checkpoint, checkpoint_path, load_model_only
from lightwell.store.checkpoints import list_checkpoints, newest_good, step_of, verify_checkpoint
from lightwell.store.database import RunDatabase
from lightwell.store.run_folder import CONFIG, DATABASE, DATASET, RunFolder, create, is_run, open_run, require_free
from lightwell.tokenizer.size import choose_vocab_size
from lightwell.training.assemble import assemble, begins_with_pairs
from lightwell.training.loop import run as train
from lightwell.training.outcome import OUTCOME, hand_over, outcome_tokens
from lightwell.training.record import NoRecord
from lightwell.training.saver import read_for_all

Text = str | Path | Sequence[str | Path]
Say = Callable[[str], None]
Progress = Callable[[int, int | None, str], None]
DEFAULT_MINUTES = 10.0
WEIGHTLESS = {"drop_rate", "context_length"}  # keys of a model that may change while its weights stay
TYPICAL_VOCAB_SIZE = 1024  # of a tokenizer that does not exist yet
PULSES = 50  # measurements of every layer over a run, or fewer:
PULSE_SHARE = 0.02  # of its time at most, unless it was said how often
SNAPSHOTS = "snapshots"  # of a run's folder: whole steps to look at, if they were asked for


def quiet(*_: Any) -> None:
    """Says nothing: what the library does unless a command gives it a voice."""


@dataclass
class Run:
    """A trained model with all that belongs to it. Made by `load`, `pretrain` and `resume`."""

    path: Path
    folder: RunFolder
    checkpoint: Path
    device: Device

    @cached_property
    def config(self) -> RunConfig:
        return parse(self.folder.config)

    @property
    def tokenizer(self) -> Any:
        return self.folder.tokenizer

    @property
    def model_config(self) -> ModelConfig:
        return self.config.model.complete()

    @cached_property
    def model(self) -> GPT2 | Modern:
        """The trained module, in evaluation mode on the run's device."""
        model = GPT(self.model_config)
        model.load_state_dict(load_model_only(self.checkpoint))
        return model.to(self.device.torch_device).eval()

    def quantize(self, kind: str) -> None:
        """Write with smaller weights from now on: "int8" or "bf16". Raises UserError off the CPU."""
        from lightwell.generation.quantize import quantize

        self.model = quantize(self.model, kind)

    def only_write(self) -> None:
        """Lay the weights out for generation: faster on a CPU, with the last bit of other results not the same."""
        from lightwell.generation.layout import lay_out

        lay_out(self.model)

    @property
    def step(self) -> int:
        return int(self.checkpoint.name.removeprefix("step-"))

    @property
    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Every recorded metric as a list of (step, value)."""
        if not (self.path / DATABASE).exists():
            return {}
        with RunDatabase(self.path / DATABASE, read_only=True) as database:
            return {name: database.metrics(name) for name in database.names()}

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        truncate_prompt: bool = False,
    ) -> Iterator[str]:
        """Text that goes on from `prompt`, piece by piece, never half a character. Temperature 0: the likeliest.

        Raises UserError for a prompt longer than the context, unless `truncate_prompt`: then its end is gone on from.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        engine = Engine(self.model, self.tokenizer)
        pieces = engine.stream(
            [prompt], max_new_tokens=max_new_tokens, sampling=sampling, stop=list(stop), seed=seed,
            truncate_prompt=truncate_prompt,
        )  # fmt: skip
        while True:
            with self.device.autocast():  # for one token: the caller's own products in between stay as they are
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece[0]

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The text of `stream` at once, without the prompt."""
        return "".join(self.stream(prompt, **options))

    def evaluate(self, text: Text | None = None, progress: Progress = quiet) -> Evaluation:
        """Held-out loss and bits per byte, of the run's own held-out part or of other text (see evaluation/loss.py)."""
        stream = self._heldout() if text is None else text_stream(text, self.tokenizer)
        with self.device.autocast():
            return evaluate_stream(self.model, stream, self.tokenizer, progress=progress)

    def outcome(self) -> dict[str, Any]:
        """How training went: steps, tokens, parameters, the last held-out figures and what was predicted, speed."""
        metrics, ending = self.metrics, outcome_of(self.path) or {}

        def last(name: str) -> float | None:
            return metrics[name][-1][1] if metrics.get(name) else None

        rates = sorted(value for _, value in metrics.get("tokens_per_second", []))
        return {
            "steps": max([self.step, *(step for step, _ in metrics.get("tokens", [])[-1:])]),
            "tokens": int(last("tokens") or 0),
            "parameters": parameters(self.model_config)["total"],
            "heldout": {
                key: ending.get(key, last(f"heldout.{key}")) for key in ("loss", "bits_per_byte", "standard_error")
            },
            "predicted": {"bits_per_byte": ending.get("predicted"), "off": ending.get("off")},
            "tokens_per_second": rates[len(rates) // 2] if rates else None,
            "checkpoint": str(self.checkpoint),
        }

    def dataset(self) -> Dataset:
        """The data that the run was trained on. Raises RunError if it is not there (an imported model has none)."""
        path = self.folder.dataset_path
        if path is None or not path.is_dir():
            hint = f"Give a text: lightwell evaluate {self.path} TEXT"
            raise RunError(f"expected the data of {self.path}, found none.", hint)
        return open_dataset(path)

    def _heldout(self) -> TokenStream:
        return self.dataset().val


def load(path: str | Path, *, device: str = "auto", dtype: str = "float32") -> Run:
    """Open a run folder at its newest good checkpoint. Raises RunError if it is not a run or none is good."""
    path = Path(path)
    folder = open_run(path)
    checkpoint = newest_good(path, set_aside=False)
    if checkpoint is None:
        raise RunError(
            f"expected a good checkpoint in {path}, found none.", f"`lightwell runs {path} --check` says more."
        )
    checkpoint = handed_over(path, checkpoint)
    run = Run(path, folder, checkpoint, choose_device(device, dtype))
    expected, got = run.config.model.vocab_size, run.tokenizer.vocab_size
    padded = "import" in folder.request  # other projects round their vocabularies up
    if expected != got and not (padded and expected is not None and got < expected):
        raise TokenizerError(
            f"expected the tokenizer of the model in {path}, with {expected} tokens, got one with {got}.",
            "Put back the tokenizer.json that belongs to the run.",
        )
    return run


def outcome_of(path: Path) -> dict[str, Any] | None:
    """How a finished run turned out (training/outcome.py has the keys); None for one that goes on."""
    if not (path / DATABASE).exists():
        return None
    with RunDatabase(path / DATABASE, read_only=True) as database:
        found = database.events(OUTCOME)
    checkpoints = list_checkpoints(path)
    return found[-1]["details"] if found and checkpoints and found[-1]["step"] >= step_of(checkpoints[-1]) else None


def handed_over(path: Path, newest: Path) -> Path:
    """The checkpoint that a run hands over: of a finished one the best by held-out text, otherwise (and where that is
    broken) the newest good one."""
    best = checkpoint_path(path, (outcome_of(path) or {}).get("handed_over", step_of(newest)))
    if best == newest or not best.is_dir():
        return newest
    try:
        verify_checkpoint(best)
    except DamagedError:
        return newest
    return best


def text_stream(text: Text, tokenizer: Any) -> TokenStream:
    """Files and folders of text as one stream of tokens, each document opened by the separator."""
    documents, n_bytes = [], 0
    for document in collect(as_paths(text)).documents():
        documents.append(tokenizer.encode_array(document.text.decode("utf-8")))
        n_bytes += len(document.text)
    if not documents:
        raise DataError(f"expected some text in {', '.join(map(str, as_paths(text)))}, got nothing but blanks.")
    return TokenStream.from_documents(documents, tokenizer.separator_id, n_bytes)


def as_paths(text: Text | None) -> list[Path | str]:
    if text is None:
        return list(standard_library())
    return [text] if isinstance(text, str | Path) else list(text)


@dataclass
class Request:
    """What the user asked of `pretrain`: the text and the layers of config, not yet resolved."""

    text: list[Path | str] | None
    raw: dict[str, Any]

    @property
    def config(self) -> RunConfig:
        return parse(self.raw)


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
        shelf.pop("budget", None)
        file.pop("budget", None)
    if minutes is not None:  # a preset's batch is for the tokens that it was made for; minutes are planned
        shelf.get("train", {}).pop("batch_size", None)
    raw = merge(
        shelf,
        file,
        {name: section for name, section in given.items() if section},
        parse_settings(list(settings)),
    )
    request = Request(None if text is None else as_paths(text), raw)
    _ = request.config  # reports every problem now
    return request


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
            go_on(path, device, world, observers=observers, stop=stop, say=say)
            return load(path, device=config.runtime.device)
        world.on_main(lambda: make_run_folder(path))
        with held(path, world):
            set_threads(config, world)
            parent = load(weights_from) if weights_from else None
            if parent:
                require_same_shape(parent, asked.raw.get("model", {}))

            def begin() -> dict[str, Any]:
                return begin_run(path, asked, config, device, parent, began, say, progress, world.size)

            begun = world.on_main(begin)
            train_run(
                path, parse(begun["config"]), open_dataset(begun["dataset"]), device, world, observers, stop,
                began=began, weights=weights_of(parent) if parent else None, peak_flops=begun["peak_flops"],
                step_seconds=begun["step_seconds"],
            )  # fmt: skip
    return load(path, device=config.runtime.device)


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
        (path / CONFIG).unlink()  # of an attempt that ended before its first checkpoint: it begins again
    peak = measure_peak_flops(device)
    dataset = open_or_prepare(asked.text, path, config, device, parent, peak, say, progress, processes)
    choice = plan_run(config, dataset, device, parent, peak, began, processes)
    for reason in choice.reasons:
        say(reason)
    if parent is None and begins_with_pairs(choice.config.model.complete(), choice.config):
        say("Embeddings and head begin with the pairs of tokens counted in the text.")
    require_memory(choice.config, device)
    create(path, to_raw(choice.config), asked.raw, dataset.tokenizer, dataset.path)
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
    config = parse(open_run(path).config)
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
    config = parse(folder.config)
    with held(path, world):
        set_threads(config, world)
        checkpoint = read_for_all(path, world, say)
        dataset_path = folder.dataset_path
        if dataset_path is None:
            raise RunError(f"expected the data of {path}, found none.", "An imported model is trained with --from.")
        world.on_main(lambda: str(open_dataset(dataset_path, verify=True).path))  # every byte, once
        dataset = open_dataset(dataset_path)
        if checkpoint.manifest.get("dataset", dataset.fingerprint) != dataset.fingerprint:
            raise RunError(
                f"expected the data that {path} was trained on, got other data in {dataset_path}.",
                "`lightwell data diff` shows the changes; a new run can begin with --from.",
            )
        train_run(
            path, config, dataset, device, world, observers, stop,
            checkpoint=checkpoint, extend_steps=extend_steps, peak_flops=measure_peak_flops(device),
        )  # fmt: skip


@contextmanager
def held(path: Path, world: World) -> Iterator[None]:
    """The run's lock, held by the main process for all of them."""
    with ExitStack() as stack:
        world.on_main(lambda: stack.enter_context(lock_folder(path)) and None)
        yield


def train_run(
    path: Path,
    config: RunConfig,
    dataset: Dataset,
    device: Device,
    world: World,
    observers: Sequence[Observer],
    stop: Callable[[], str | None],
    *,
    checkpoint: Checkpoint | None = None,
    weights: dict[str, Tensor] | None = None,
    extend_steps: int | None = None,
    began: float | None = None,
    peak_flops: float | None = None,
    step_seconds: float | None = None,
) -> None:
    """Train to the end, or raise StoppedEarly with the command that goes on. Only the main process is watched."""
    with ExitStack() as stack:
        database: RunDatabase | NoRecord = NoRecord()
        if world.is_main:
            database = stack.enter_context(RunDatabase(path / DATABASE))
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
            tokens = outcome_tokens(step, training.pace.tokens_per_step)
            hand_over(training, tokens, plan[-1]["details"].get("bits_per_byte") if plan else None)
        database.add_event(step, "end", {"reason": reason or "done"})
    if reason not in (None, "overfitting"):
        raise StoppedEarly(
            f"stopped at step {step} of {training.pace.steps(training.state)} ({reason}); saved.",
            f"Go on with: lightwell resume {path}",
            {"run": str(path), "step": step, "checkpoint": str(list_checkpoints(path)[-1])},
        )


def can_go_on(path: Path, asked: Request, force: bool, say: Say) -> bool:
    """Whether `path` holds a run that was asked for the same and goes on; a new one can begin there if not.

    Raises RunError showing the differences if it was asked for otherwise, and for a folder of something else.
    """
    if not is_run(path):
        require_free(path)
        return False
    if not has_begun(path):
        return False  # another process may be about to train here: the lock will tell
    before = open_run(path, need_checkpoint=False).request
    differences = [
        f"{section}.{key}: {before.get(section, {}).get(key)} -> {asked.raw.get(section, {}).get(key)}"
        for section in sorted(before.keys() | asked.raw.keys())
        for key in sorted(before.get(section, {}).keys() | asked.raw.get(section, {}).keys())
        if before.get(section, {}).get(key) != asked.raw.get(section, {}).get(key)
    ]
    if differences and not force:
        raise RunError(
            f"expected {path} to be free or a run asked for the same, got differences: {'; '.join(differences)}.",
            f"Go on as it was with `lightwell resume {path}`, or choose another --out.",
        )
    if differences:
        say(f"Going on with {path} as it was first asked for; ignored: {'; '.join(differences)}")
    return True


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


def set_threads(config: RunConfig, world: World | None = None) -> None:
    """Use the processors that there are, shared among the processes of this machine."""
    sharing = world.local_size if world else 1
    torch.set_num_threads(config.runtime.threads or max(1, allowed_cpus() // sharing))


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
        if config.data.val or config.data.limit_bytes:
            raise UserError(
                f"expected text beside {'--val' if config.data.val else 'data.limit_bytes'}, got prepared data in"
                f" {text[0]}, which has its own held-out part and length.",
                "Prepare the text anew with `lightwell data prepare TEXT --val HELD_OUT --out FOLDER`.",
            )
        dataset = open_dataset(Path(text[0]), verify=True)
        if parent and dataset.tokenizer.hash != parent.tokenizer.hash:
            raise UserError(
                f"expected data prepared with the tokenizer of {parent.path}, got another one in {text[0]}.",
                "Give the text itself instead of the prepared data.",
            )
        return dataset
    if (run / DATASET).is_dir():  # left by an attempt that ended before it trained
        shutil.rmtree(run / DATASET)
    sources = standard_library() if text is None else text
    tokenizer: Any = parent.tokenizer if parent else config.tokenizer.kind
    if config.tokenizer.kind == "gpt2" and config.tokenizer.path:
        from lightwell.tokenizer.gpt2 import load_gpt2

        tokenizer = load_gpt2(Path(config.tokenizer.path))
    seconds = 60 * config.budget.minutes if config.budget.minutes else None
    n_bytes = collect(sources).n_bytes
    vocab_size = None
    if tokenizer == "bpe":
        read = min(n_bytes, config.data.limit_bytes or n_bytes)
        vocab_size = config.model.vocab_size or choose_vocab_size(read, seconds)
    ids = vocab_size or config.model.vocab_size or TYPICAL_VOCAB_SIZE
    largest = max(n_bytes, collect(config.data.val).n_bytes if config.data.val else 0)
    limit = config.data.limit_bytes or bytes_to_read(config, largest, ids, device, peak, seconds, processes)
    if limit is not None and limit < n_bytes:
        say(f"Reading {limit / 1e6:,.0f} of {n_bytes / 1e6:,.0f} MB of text, chosen by the seed: enough for the time.")
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
        own = config.model.model_dump(include=WEIGHTLESS, exclude_none=True)
        config = changed(config, model=parent.model_config.model_dump() | own)
        config = with_rates(config, LONG, math.inf)  # it has learned already, and should not forget
    if config.model.vocab_size is not None and vocab_size > config.model.vocab_size:
        raise UserError(
            f"expected a vocabulary of at most {config.model.vocab_size} tokens, got a tokenizer of {vocab_size}.",
            "Leave model.vocab_size out, and the tokenizer decides.",
        )
    text = look_at(dataset, device, None if parent else seconds_left(config, began))
    config = changed(config, model={"vocab_size": vocab_size})
    choice = choose(config, vocab_size, text, device, peak, seconds_left(config, began), processes)
    return without_prediction(choice, parent.path) if parent else choice


def without_prediction(choice: Choice, parent: Path) -> Choice:
    """Of a run that goes on from another's weights: the law behind predictions knows models that begin anew."""
    expected = {key: value for key, value in choice.expected.items() if key in ("tokens", "step_seconds")}
    said = f"Begins with the weights of {parent}; of such a run nothing is predicted."
    return replace(choice, reasons=choice.reasons and [choice.reasons[0], said], expected=expected)


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
    n = 1
    while (parent / f"{name}-{n}").exists():
        n += 1
    return parent / f"{name}-{n}"


def name_of(text: list[Path | str] | None) -> str:
    """A run's name from its text: the first file's or folder's."""
    if text is None:
        return "python"
    name = Path(text[0]).resolve().name if text else "run"
    return re.sub(r"[^\w.-]+", "-", name.removesuffix(Path(name).suffix)).strip("-.")[:60] or "run"


def longest_copy_from(run: Run, sample: str) -> str:
    """The longest stretch of `sample` that stands word for word in the run's training text: in SEARCHED tokens of it,
    where there are more."""
    from lightwell.evaluation.copies import PIECES, SEARCHED, longest_copy

    dataset = run.dataset()
    ids = dataset.train.scattered(SEARCHED, PIECES)
    length = len(ids) // PIECES if len(ids) < len(dataset.train) else len(ids)
    pieces = [ids[i : i + length].tolist() for i in range(0, len(ids), max(1, length))]
    return longest_copy(sample, "\0".join(map(dataset.tokenizer.decode, pieces))).text  # none reaches over two pieces
