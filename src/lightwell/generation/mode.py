"""A model as it is used, not as it is trained: dropout off for a while, every module's mode put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightwell.model.gpt2 import GPT2
from lightwell.model.modern import Modern

Model = GPT2 | Modern


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """In the `with` block every module of `model` is in evaluation mode; afterwards each is as it was."""
    trained = [module for module in model.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True
