"""A trained run, opened again: its model, tokenizer and metrics; it writes text and is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import RunConfig, parse
from lightwell.data.dataset import Dataset, open_dataset
from lightwell.data.shards import TokenStream
from lightwell.data.sources import collect, standard_library
from lightwell.errors import DamagedError, DataError, RunError, TokenizerError
from lightwell.evaluation.loss import evaluate_stream
from lightwell.evaluation.report import Evaluation
from lightwell.generation.engine import Engine
from lightwell.generation.sample import Sampling
from lightwell.model.build import GPT
from lightwell.model.count import parameters
from lightwell.model.gpt2 import GPT2
from lightwell.model.modern import Modern
from lightwell.runtime.device import Device, choose_device
from lightwell.runtime.threads import limit_threads
from lightwell.store.checkpoint import checkpoint_path, load_model_only
from lightwell.store.checkpoints import list_checkpoints, newest_good, step_of, verify_checkpoint
from lightwell.store.database import RunDatabase
from lightwell.store.run_folder import DATABASE, RunFolder, open_run
from lightwell.training.outcome import OUTCOME

Text = str | Path | Sequence[str | Path]
Progress = Callable[[int, int | None, str], None]


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
        with self.device.autocast():  # its cache has the dtype of what is cached
            pieces = engine.stream(
                [prompt], max_new_tokens=max_new_tokens, sampling=sampling, stop=list(stop), seed=seed,
                truncate_prompt=truncate_prompt,
            )  # fmt: skip

        def write() -> Iterator[str]:
            while True:
                with self.device.autocast():  # for one token: the caller's own products in between stay as they are
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece[0]

        return write()  # a prompt that is refused has been by now, before anything is shown

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
    limit_threads()
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


def longest_copy_from(run: Run, sample: str) -> str:
    """The longest stretch of `sample` that stands word for word in the run's training text: in SEARCHED tokens of it,
    where there are more."""
    from lightwell.evaluation.copies import PIECES, SEARCHED, longest_copy

    dataset = run.dataset()
    ids = dataset.train.scattered(SEARCHED, PIECES)
    length = len(ids) // PIECES if len(ids) < len(dataset.train) else len(ids)
    pieces = [ids[i : i + length].tolist() for i in range(0, len(ids), max(1, length))]
    return longest_copy(sample, "\0".join(map(dataset.tokenizer.decode, pieces))).text  # none reaches over two pieces
