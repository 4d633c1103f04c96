"""What the model writes while it is trained: an observer that hands each text to whoever keeps it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightwell.generation.engine import Engine
from lightwell.generation.sample import TEMPERATURE, Sampling
from lightwell.runtime.device import Device
from lightwell.runtime.observer import Observer
from lightwell.tokenizer.base import Tokenizer


class Samples(Observer):
    """Writes `max_new_tokens` tokens after each of `prompts` when asked to; the same text for the same weights.

    keep(step, prompt, text) is called for each, after all are written.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        max_new_tokens: int,
        device: Device,
        keep: Callable[[int, str, str], None],
    ) -> None:
        self.tokenizer, self.prompts, self.max_new_tokens = tokenizer, prompts, max_new_tokens
        self.device, self.keep = device, keep

    def sample(self, step: int, model: Any) -> None:
        engine, sampling = Engine(model, self.tokenizer), Sampling(temperature=TEMPERATURE)
        with self.device.autocast():
            texts = [
                engine.generate(prompt, max_new_tokens=self.max_new_tokens, sampling=sampling, seed=step)
                for prompt in self.prompts
            ]
        for prompt, text in zip(self.prompts, texts):
            self.keep(step, prompt, text)
