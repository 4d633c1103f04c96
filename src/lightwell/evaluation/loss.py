"""Held-out loss and bits per byte, by one definition for every model, tokenizer and text.

The text is its documents' tokens, each document opened by the separator. The first separator is given; every token
after it counts, the separators between documents too. These tokens are cut into windows of the model's own
context_length, without overlap. In each window the model sees the separator and all tokens but the last, and predicts
all of them: so a window's first token is predicted from the separator alone. The loss is summed over all tokens, and
reported in two units:

    loss            per token, in nats (natural logarithm): what training makes smaller
    bits_per_byte   per byte of the original text, in bits: models with different tokenizers can be compared by it

Evaluation draws no random number and leaves the model as it found it.

    B windows at once, T tokens of a window (context_length), V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from lightwell.errors import DataError
from lightwell.evaluation.report import Evaluation, Window, summarise
from lightwell.generation.mode import Model, evaluating
from lightwell.model.checks import check_ids, known_vocab_size
from lightwell.model.loss import IGNORE
from lightwell.runtime.observer import Progress
from lightwell.tokenizer.base import Tokenizer

# Logits held at once, B x T x V numbers: 64 MB in float32. A larger window goes through the model's loss by pieces.
MAX_LOGITS = 1 << 24
# Tokens read at once where only their bytes are counted.
READ_TOKENS = 1 << 20


class Stream(Protocol):
    """Tokens that are read piece by piece, such as a prepared dataset's. n_bytes: the original bytes of the text."""

    @property
    def n_bytes(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


def evaluate_stream(
    model: Model,
    stream: Stream,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 8,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The loss of `model` on a prepared text. Options and errors as in `evaluate_ids`."""
    byte_lengths, separator_id = tokenizer.byte_lengths(), tokenizer.separator_id
    return _evaluate(model, stream, byte_lengths, separator_id, batch_size, None, max_tokens, progress)


def evaluate_text(
    model: Model,
    documents: Sequence[str],
    tokenizer: Tokenizer,
    *,
    batch_size: int = 8,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The loss of `model` on `documents`, texts as they are. Options and errors as in `evaluate_ids`."""
    separator = np.array([tokenizer.separator_id], np.int64)
    parts = [part for text in documents for part in (separator, tokenizer.encode_array(text).astype(np.int64))]
    stream = _Array(np.concatenate(parts or [separator]), sum(len(text.encode()) for text in documents))
    return evaluate_stream(model, stream, tokenizer, batch_size=batch_size, max_tokens=max_tokens, progress=progress)


def evaluate_ids(
    model: Model,
    ids: np.ndarray,
    byte_lengths: np.ndarray,
    separator_id: int,
    *,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The loss of `model` on the tokens `ids` (n,), which begin with the separator.

    byte_lengths: (V,), the bytes each token stands for. batch_size: windows that go through the model at once, fewer
    where their logits would take much memory. device: where to, if not to the model's own. max_tokens: look at about
    so many tokens, at least one window, in windows spread evenly over the text and always the same ones.
    progress(done, total, what) counts tokens.
    Raises DataError when there is no text, UserError for ids that the model does not have.
    """
    check_ids(model.config, torch.from_numpy(ids.astype(np.int64)))
    stream = _Array(ids, int(byte_lengths[ids].sum()))
    return _evaluate(model, stream, byte_lengths, separator_id, batch_size, device, max_tokens, progress)


def _evaluate(
    model: Model,
    stream: Stream,
    byte_lengths: np.ndarray,
    separator_id: int,
    batch_size: int,
    device: torch.device | str | None,
    max_tokens: int | None,
    progress: Progress | None,
) -> Evaluation:
    context_length, vocab_size = model.config.context_length, known_vocab_size(model.config)
    if len(stream) < 2 or int(stream.read(0, 1)[0]) != separator_id:
        raise DataError("expected a text opened by the separator, got none or one without it.", "Is the text empty?")
    starts = _window_starts(len(stream), context_length, max_tokens)
    total = sum(min(context_length, len(stream) - start) for start in starts)
    at_once = max(1, min(batch_size, MAX_LOGITS // (context_length * vocab_size)))
    windows: list[Window] = []
    done = 0
    with torch.inference_mode(), evaluating(model):
        for i in range(0, len(starts), at_once):
            rows = [stream.read(start, min(start + context_length, len(stream))) for start in starts[i : i + at_once]]
            losses = _losses(model, rows, separator_id, device or model.device)
            windows += [Window(loss, len(row), float(byte_lengths[row].sum())) for loss, row in zip(losses, rows)]
            done += sum(map(len, rows))
            if progress is not None:
                progress(done, total, "evaluating")
    scale = _original_bytes_per_byte(stream, byte_lengths, sum(window.size for window in windows))
    return summarise([window._replace(size=window.size * scale) for window in windows])


def _window_starts(n_ids: int, context_length: int, max_tokens: int | None) -> list[int]:
    """Where the windows begin that are looked at: all of them, or as many as max_tokens allows, evenly spread."""
    starts = range(1, n_ids, context_length)  # the first id is the separator that is given
    n = len(starts) if max_tokens is None else min(len(starts), max(1, max_tokens // context_length))
    return [starts[i * len(starts) // n] for i in range(n)]


def _losses(model: Model, rows: Sequence[np.ndarray], separator_id: int, device: torch.device | str) -> list[float]:
    """The loss of each window in nats. `rows`: the tokens to predict, in each at most context_length."""
    width = max(map(len, rows))
    inputs = torch.full((len(rows), width), separator_id)  # (B, T)
    targets = torch.full((len(rows), width), IGNORE)  # (B, T)
    for row, tokens in enumerate(rows):
        ids = torch.from_numpy(tokens.astype(np.int64))
        check_ids(model.config, ids)
        inputs[row, 1 : len(ids)] = ids[:-1]
        targets[row, : len(ids)] = ids
    inputs, targets = inputs.to(device), targets.to(device)
    if len(rows) == 1:
        loss, _ = model(inputs, targets)
        return [float(loss)]
    logits = model(inputs)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view(targets.shape).sum(dim=1).tolist()


def _original_bytes_per_byte(stream: Stream, byte_lengths: np.ndarray, seen: float) -> float:
    """Original bytes of the text for each byte of its tokens: 1, unless the tokenizer or a reader changed the text.

    `seen`: the bytes of the tokens that were looked at. Raises DataError if there are none, separators aside.
    """
    pieces = range(0, len(stream), READ_TOKENS)
    n_bytes = sum(int(byte_lengths[stream.read(i, min(i + READ_TOKENS, len(stream)))].sum()) for i in pieces)
    if not seen or not stream.n_bytes:
        raise DataError("expected a text of at least one byte, got separators alone.", "Is the text empty?")
    return stream.n_bytes / n_bytes


class _Array:
    """Tokens in memory, as a `Stream`."""

    def __init__(self, ids: np.ndarray, n_bytes: int) -> None:
        self.ids = ids
        self.n_bytes = n_bytes

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]
