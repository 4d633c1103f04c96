"""A prompt to streamed text: tokens one after the other, shown as soon as what they say is certain.

    for pieces in Engine(model, tokenizer).stream(["Once upon", "def main"], max_new_tokens=50):
        ...                                       # pieces: the new text of each prompt, "" where there is none yet

Every prompt is opened by the separator, as every document was in training, so an empty prompt begins a new text. A text
ends at the separator, at a stop string or after max_new_tokens. Beyond the model's context_length the last half of the
context is kept (`window.py`). `naive.py` is the slow twin.

Prompts in one batch know nothing of each other: each gets the text that it would get alone, but for rounding, which can
tell between two tokens that are about as likely, seldom in float32 and more often with smaller weights (`quantize.py`).
Each has its own source of chance, made from the seed; only where the same prompt stands in a batch several times do the
second and later ones get sources of their own, so that they are different texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lightwell.errors import TokenizerError, UserError
from lightwell.generation.cached import CachedTexts
from lightwell.generation.mode import Model, evaluating
from lightwell.generation.sample import Sampling, sample
from lightwell.generation.stop import StopStrings
from lightwell.model.checks import check_ids, known_vocab_size
from lightwell.runtime.seeds import generator
from lightwell.tokenizer.base import Tokenizer
from lightwell.tokenizer.stream import StreamDecoder

Prompt = str | Sequence[int]

SEPARATOR, STOP, LENGTH = "separator", "stop", "length"


class Engine:
    """Generates text with a model and its tokenizer.

    `model(ids, cache=...)`: (B, T) int64 -> logits (B, T, V); it may be in training, and is left as it was. One
    thread at a time: meanwhile its mode is another. `autocast`: a context that the model runs in.
    Raises TokenizerError for a tokenizer with more tokens than the model.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        if tokenizer.vocab_size > (vocab_size := known_vocab_size(model.config)):
            raise TokenizerError(
                f"expected a tokenizer of at most {vocab_size} tokens, as many as the model has, "
                f"got one of {tokenizer.vocab_size}.",
                "Use the tokenizer that the model was trained with.",
            )
        self.model, self.tokenizer, self.autocast = model, tokenizer, autocast

    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
        truncate_prompt: bool = False,
    ) -> Generation:
        """An iterator over the new text of each prompt, token by token.

        `prompts`: texts, or token ids (the separator is put before them unless they begin with it). `stop`: strings at
        which a text ends; they are not part of it. A prompt longer than the context needs `truncate_prompt`: the model
        then sees of it what it would see had it written it itself.
        Raises UserError for a prompt that is too long, ids outside the vocabulary, or settings without a meaning.
        """
        if isinstance(prompts, str) or not prompts:
            raise UserError(f"expected a list of at least one prompt, got {prompts!r}.", "Use generate for one prompt.")
        if max_new_tokens < 0:
            raise UserError(f"expected max_new_tokens to be 0 or more, got {max_new_tokens}.")
        opened = [self._opened(prompt, truncate_prompt) for prompt in prompts]
        return Generation(self, opened, max_new_tokens, sampling or Sampling(), stop, seed)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
        truncate_prompt: bool = False,
    ) -> str:
        """The text that follows one prompt, without it. Options and errors as in `stream`."""
        generation = self.stream(
            [prompt],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            seed=seed,
            truncate_prompt=truncate_prompt,
        )
        return generation.finish()[0]

    def generate_ids(
        self, ids: Sequence[int], *, max_new_tokens: int, sampling: Sampling | None = None, seed: int = 0
    ) -> list[int]:
        """The `max_new_tokens` tokens that follow `ids` (at least one), nothing added before them and no end but that.

        Any token of the model, the separator too: what a benchmark or a comparison with another program wants. `ids`
        may be longer than the context. Raises UserError for no ids or some outside the vocabulary.
        """
        if not ids:
            raise UserError("expected at least one token id to go on from, got none.", "Begin with the separator.")
        check_ids(self.model.config, torch.tensor(ids))
        source, chosen = generator(seed, "generate", 0), sampling or Sampling()
        with torch.inference_mode(), evaluating(self.model):
            cached = CachedTexts(self.model, [ids], max_new_tokens)
            for _ in range(max_new_tokens):
                cached.append(sample(cached.next_logits(), chosen, cached.sequences, [source]).tolist())
        return cached.sequences[0][len(ids) :]

    def _opened(self, prompt: Prompt, truncate: bool) -> list[int]:
        """The ids of a prompt, checked, the separator first."""
        separator_id, context_length = self.tokenizer.separator_id, self.model.config.context_length
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        check_ids(self.model.config, torch.tensor(ids, dtype=torch.int64))
        if ids[:1] != [separator_id]:
            ids = [separator_id, *ids]
        if len(ids) > context_length and not truncate:
            raise UserError(
                f"expected a prompt of at most {context_length - 1} tokens, which the model's context holds after the "
                f"separator, got {len(ids) - 1}.",
                "Shorten it, or go on from its end alone with --truncate-prompt (truncate_prompt=True).",
            )
        return ids


class Generation(Iterator[list[str]]):
    """Texts in the making. Each step gives the new text of each prompt; the attributes hold what there is so far.

    texts: the text of each prompt, without the prompt. ids: its tokens (those of a stop string too, not the separator).
    endings: why each ended: "separator", "stop", "length"; None while it goes on.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: list[list[int]],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.sampling = engine.model, engine.tokenizer, sampling
        self._autocast = engine.autocast
        nth: Counter[tuple[int, ...]] = Counter()
        self._rows = []
        for prompt in prompts:
            source = generator(seed, "generate", nth[tuple(prompt)])
            self._rows.append(_Row(self.tokenizer, stop, max_new_tokens, source))
            nth[tuple(prompt)] += 1
        self._active = [row for row in self._rows if row.ending is None]
        with torch.inference_mode(), self._autocast():  # the cache has the dtype of what is cached
            self._cached = CachedTexts(self.model, prompts, max_new_tokens)

    @property
    def texts(self) -> list[str]:
        return ["".join(row.pieces) for row in self._rows]

    @property
    def ids(self) -> list[list[int]]:
        return [row.ids for row in self._rows]

    @property
    def endings(self) -> list[str | None]:
        return [row.ending for row in self._rows]

    def finish(self) -> list[str]:
        """All texts, once each has ended."""
        for _ in self:
            pass
        return self.texts

    def __next__(self) -> list[str]:
        if not self._active:
            raise StopIteration
        for row, token in zip(self._active, self._next_tokens()):
            row.push(token)
        pieces = [row.pieces[-1] if row in self._active else "" for row in self._rows]
        going_on = [i for i, row in enumerate(self._active) if row.ending is None]
        if 0 < len(going_on) < len(self._active):
            with torch.inference_mode():
                self._cached.keep(going_on)
        self._active = [self._active[i] for i in going_on]
        return pieces

    def _next_tokens(self) -> list[int]:
        """One more token for each text that goes on. The model's mode and torch's are the caller's again afterwards."""
        with torch.inference_mode(), evaluating(self.model), self._autocast():
            logits = self._cached.next_logits()[:, : self.tokenizer.vocab_size]
            sources = [row.source for row in self._active]
            tokens = sample(logits, self.sampling, self._histories(), sources).tolist()
        self._cached.append(tokens)
        return tokens

    def _histories(self) -> list[list[int]]:
        """What the repetition penalty looks at: the prompt and the text, without separators, which are not text."""
        if self.sampling.repetition_penalty == 1.0:
            return []
        separator_id = self.tokenizer.separator_id
        return [[token for token in ids if token != separator_id] for ids in self._cached.sequences]


class _Row:
    """One prompt's text: tokens in, pieces of text out, until it ends."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], max_new_tokens: int, source: torch.Generator) -> None:
        self.separator_id = tokenizer.separator_id
        self.decoder = StreamDecoder(tokenizer)
        self.stop = StopStrings(stop)
        self.max_new_tokens = max_new_tokens
        self.source = source
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.ending = None if max_new_tokens else LENGTH

    def push(self, token: int) -> None:
        """Takes the next token. At the end a character whose last bytes never came is left out, not shown broken."""
        piece = ""
        if token == self.separator_id:
            self.ending = SEPARATOR
        else:
            self.ids.append(token)
            piece = self.stop.push(self.decoder.push(token))
            if self.stop.found is not None:
                self.ending = STOP
            elif len(self.ids) == self.max_new_tokens:
                self.ending = LENGTH
        self.pieces.append(piece if self.ending is None else piece + self.stop.finish())
