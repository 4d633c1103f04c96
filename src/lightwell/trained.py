"""A trained run, opened again: its model, tokenizer and metrics; it writes text and is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import RunConfig, differences, parse, what_decides
from lightwell.data.dataset import Dataset, open_dataset
from lightwell.data.shards import TokenStream
from lightwell.data.sources import collect, standard_library
from lightwell.errors import ConfigError, DamagedError, DataError, RunError, TokenizerError, UserError
from lightwell.evaluation.loss import evaluate_stream
from lightwell.evaluation.report import Evaluation
from lightwell.files.limits import safetensors_header
from lightwell.files.paths import command
from lightwell.generation.engine import Engine, Generation
from lightwell.generation.sample import TEMPERATURE, Sampling
from lightwell.model.build import GPT
from lightwell.model.count import parameters
from lightwell.model.gpt2 import GPT2
from lightwell.model.modern import Modern
from lightwell.runtime.device import Device, choose_device
from lightwell.runtime.observer import Progress
from lightwell.runtime.threads import limit_threads
from lightwell.store.checkpoint import MODEL, checkpoint_manifest, checkpoint_path, load_model_only
from lightwell.store.checkpoints import list_checkpoints, newest_good, step_of, verify_checkpoint
from lightwell.store.database import RunDatabase
from lightwell.store.run_folder import CONFIG, DATABASE, RunFolder, open_run
from lightwell.training.outcome import OUTCOME

Text = str | Path | Sequence[str | Path]
Metrics = dict[str, list[tuple[int, float]]]  # by name: (step, value)
_PUT_BACK = "Put back the tokenizer.json that belongs to the run; the data it was trained on has a copy."


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
        return config_of(self.folder)

    @property
    def tokenizer(self) -> Any:
        return self.folder.tokenizer

    @property
    def model_config(self) -> ModelConfig:
        return self.config.model.complete()

    @cached_property
    def model(self) -> GPT2 | Modern:
        """The trained module, in evaluation mode on the run's device."""
        with torch.device("meta"):  # no numbers yet, so that none are drawn
            model = GPT(self.model_config)
        model.load_state_dict(load_model_only(self.checkpoint), assign=True)
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
        return step_of(self.checkpoint)

    @property
    def metrics(self) -> Metrics:
        """Every recorded metric as a list of (step, value)."""
        return metrics_of(self.path)

    def stream(self, prompt: str = "", **options: Any) -> Iterator[str]:
        """Text that goes on from `prompt`, piece by piece, never half a character. Options as those of `write`."""
        generation = self.write([prompt], **options)  # a prompt that is refused is so before anything is shown
        return (piece for (piece,) in generation)

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The text of `stream` at once, without the prompt."""
        return self.write([prompt], **options).finish()[0]

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 200,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        truncate_prompt: bool = False,
    ) -> Generation:
        """Go on from several prompts at once: an iterator over the next piece of each; `texts` holds all so far.

        Temperature 0: always the likeliest token. Raises UserError for a prompt longer than the context, unless
        `truncate_prompt`: then its end is gone on from.
        """
        return Engine(self.model, self.tokenizer, self.device.autocast).stream(
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
            stop=list(stop),
            seed=seed,
            truncate_prompt=truncate_prompt,
        )

    def evaluate(self, text: Text | None = None, progress: Progress = quiet) -> Evaluation:
        """Held-out loss and bits per byte, of the run's own held-out part or of other text (see evaluation/loss.py)."""
        stream = self.dataset().val if text is None else text_stream(text, self.tokenizer)
        with self.device.autocast():
            return evaluate_stream(self.model, stream, self.tokenizer, progress=progress)

    def outcome(self) -> dict[str, Any]:
        """How training went: steps, tokens, parameters, the last held-out figures and what was predicted, speed, and
        why it ended."""
        metrics = self.metrics
        with recorded(self.path) as database:
            ends = database.events("end") if database else []
        rates = sorted(value for _, value in metrics.get("tokens_per_second", []))
        trained_to, tokens = metrics["tokens"][-1] if metrics.get("tokens") else (0, 0)
        return {
            "steps": max(self.step, trained_to),
            "tokens": int(tokens),
            "parameters": parameters(self.model_config)["total"],
            **held_out_figures(self.path, metrics),
            "tokens_per_second": rates[len(rates) // 2] if rates else None,
            "checkpoint": str(self.checkpoint),
            "reason": ends[-1]["details"]["reason"] if ends else None,
        }

    def dataset(self) -> Dataset:
        """The data that the run was trained on. Raises RunError if it is not there (an imported model has none)."""
        return data_of(self.folder, checkpoint_manifest(self.checkpoint))


def load(path: str | Path, *, device: str = "auto", dtype: str = "float32") -> Run:
    """Open a run folder at its newest good checkpoint. Raises RunError if it is not a run or none is good."""
    limit_threads()
    path = Path(path)
    folder = open_run(path)
    checkpoint = newest_good(path, set_aside=False)
    if checkpoint is None:
        raise RunError(
            f"expected a good checkpoint in {path}, found none.", f"`{command('runs', path, '--check')}` says more."
        )
    checkpoint = handed_over(path, checkpoint)
    run = Run(path, folder, checkpoint, choose_device(device, dtype))
    expected, got = run.config.model.vocab_size, run.tokenizer.vocab_size
    padded = "import" in folder.request  # other projects round their vocabularies up
    if expected != got and not (padded and expected is not None and got < expected):
        raise TokenizerError(
            f"expected the tokenizer of the model in {path}, with {expected} tokens, got one with {got}.", _PUT_BACK
        )
    require_tokenizer(folder, checkpoint_manifest(checkpoint))
    require_sizes(folder, checkpoint)
    return run


def config_of(folder: RunFolder) -> RunConfig:
    """A run's config. Raises DamagedError, naming the run, for one that this version would not have written."""
    try:
        return parse(folder.config)
    except ConfigError as error:
        said = error.message.rstrip(".")
        raise DamagedError(f"expected the config of a run in {folder.path / CONFIG}, got {said}.") from error


def require_sizes(folder: RunFolder, checkpoint: Path) -> None:
    """Raise DamagedError for a config that has other sizes than a checkpoint's weights."""
    with torch.device("meta"):
        model = GPT(config_of(folder).model.complete())
    expected, named = model.state_dict(), {name for name, _ in model.named_parameters()}
    header, _ = safetensors_header(checkpoint / MODEL, error=DamagedError)
    stored = header.keys() - {"__metadata__"}
    if others := sorted((named - stored) | (stored - expected.keys())):
        raise DamagedError(
            f"expected weights of the sizes that {folder.path / CONFIG} says, got another model's: {others[0]}.",
            "Put back the config.toml that belongs to the run.",
        )
    for name, tensor in expected.items():
        found = header.get(name, {}).get("shape")
        if found is not None and found != list(tensor.shape):
            raise DamagedError(
                f"expected {name} of shape {tuple(tensor.shape)}, as {folder.path / CONFIG} says, got {tuple(found)}.",
                "Put back the config.toml that belongs to the run.",
            )


def require_config(folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Raise DamagedError for a config of another run than the one that this manifest's checkpoint is of."""
    now = what_decides(config_of(folder))
    before = what_decides(parse(manifest["config"])) if "config" in manifest else now  # runs of before did not keep it
    if others := differences(before, now):
        raise DamagedError(
            f"expected the config that {folder.path} was begun with, got differences: {'; '.join(others)}.",
            "Put back the config.toml that belongs to the run; for other settings begin a new one"
            f" ({command('pretrain', 'TEXT', '--from', folder.path)}), for more steps:"
            f" {command('resume', folder.path, '--extend-steps', 'N')}.",
        )


def require_tokenizer(folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Raise TokenizerError for another tokenizer than the one that this manifest's checkpoint was trained with, or a
    damaged one."""
    try:
        _ = folder.tokenizer
    except TokenizerError as error:
        raise TokenizerError(error.message, f"{error.hint} {_PUT_BACK}".strip()) from error
    if manifest.get("tokenizer", folder.tokenizer.hash) != folder.tokenizer.hash:
        raise TokenizerError(f"expected the tokenizer that {folder.path} was trained with, got another one.", _PUT_BACK)


def data_of(folder: RunFolder, manifest: Mapping[str, Any], verify: bool = False) -> Dataset:
    """The data that a run was trained on, as the manifest of one of its checkpoints has it. `verify`: read every byte.

    Raises RunError if there is none, or other data in its place.
    """
    path = folder.dataset_path
    if path is None or not path.is_dir():
        raise RunError(
            f"expected the data of {folder.path}{f' in {path}' if path else ''}, found none.",
            "Restore it from a copy. Without it there are"
            f" {command('evaluate', folder.path, 'TEXT')} and {command('pretrain', 'TEXT', '--from', folder.path)}.",
        )
    dataset = open_dataset(path, verify)
    if manifest.get("dataset", dataset.fingerprint) != dataset.fingerprint:
        raise RunError(
            f"expected the data that {folder.path} was trained on, got other data in {path}.",
            "`lightwell data diff` shows the changes; a new run can begin with --from.",
        )
    return dataset


@contextmanager
def recorded(path: Path) -> Iterator[RunDatabase | None]:
    """What a run wrote down while it trained; None if there is nothing, or nothing readable: a model is whole without
    it, and `lightwell runs --check` tells."""
    try:
        database = RunDatabase(path / DATABASE, read_only=True) if (path / DATABASE).is_file() else None
    except DamagedError:
        database = None
    with database or nullcontext():
        yield database


def metrics_of(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every recorded metric of a run as a list of (step, value)."""
    with recorded(path) as database:
        return {name: database.metrics(name) for name in database.names()} if database else {}


def outcome_of(path: Path) -> dict[str, Any] | None:
    """How a finished run turned out (training/outcome.py has the keys); None for one that goes on."""
    with recorded(path) as database:
        found = database.events(OUTCOME) if database else []
    checkpoints = list_checkpoints(path)
    return found[-1]["details"] if found and checkpoints and found[-1]["step"] >= step_of(checkpoints[-1]) else None


def held_out_figures(path: Path, metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Of the outcome, or else of the last evaluation; and what was predicted."""
    ending = outcome_of(path) or {}

    def last(name: str) -> float | None:
        return metrics[name][-1][1] if metrics.get(name) else None

    keys = ("loss", "bits_per_byte", "standard_error")
    return {
        "heldout": {key: ending.get(key, last(f"heldout.{key}")) for key in keys},
        "predicted": {"bits_per_byte": ending.get("predicted"), "off": ending.get("off")},
    }


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
    """The paths of a text; None: Python's own source. An empty path, which would be this folder, is an error."""
    if text is None:
        return list(standard_library())
    paths = [text] if isinstance(text, str | Path) else list(text)
    if "" in paths:
        raise UserError("expected a file or folder, got an empty path.", "Is a variable of the shell's not set?")
    return paths


def longest_copy_from(run: Run, sample: str) -> str:
    """The longest stretch of `sample` that stands word for word in the run's training text: in SEARCHED tokens of it,
    where there are more."""
    from lightwell.evaluation.copies import PIECES, SEARCHED, longest_copy

    dataset = run.dataset()
    ids = dataset.train.scattered(SEARCHED, PIECES)
    length = len(ids) // PIECES if len(ids) < len(dataset.train) else len(ids)
    pieces = [ids[i : i + length].tolist() for i in range(0, len(ids), max(1, length))]
    return longest_copy(sample, "\0".join(map(dataset.tokenizer.decode, pieces))).text  # none reaches over two pieces
