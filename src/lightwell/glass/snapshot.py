"""A whole step of a training run, kept while it trains: every operation, value and gradient of a few of its tokens.

What is recorded is a *replay* beside the step, as the pulse's: a part of the step's batch goes through the model once
more, forward and backward, eagerly, with the random streams put back afterwards and the gradients handed to nobody.
So a run that is looked at ends with the weights of one that is not, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightwell.errors import UserError
from lightwell.glass.capture import SNAPSHOT_BYTES, trace
from lightwell.glass.pulse import mean_loss, untouched
from lightwell.glass.result import Trace
from lightwell.glass.wording import say
from lightwell.runtime.device import is_out_of_memory
from lightwell.runtime.observer import Observer

TOKENS = 64  # of one sequence: the whole of a 124M GPT-2 step then takes some hundreds of megabytes


class Snapshot(Observer):
    """Records each `every`th step and hands it to `write(step, trace)`.

    loss_of             (model, ids, targets) -> mean loss with its graph; ids and targets of shape (1, tokens)
    autocast            the context in which training runs its forward passes
    memory_limit_bytes  beyond it statistics and a sample of each tensor are kept instead of all its numbers
    compiled            whether training itself runs compiled code: the trace then says that it does not
    on_trouble          told, in a sentence, when a snapshot had to be left out; training goes on
    """

    def __init__(
        self,
        write: Callable[[int, Trace], object],
        every: int,
        *,
        loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor] = mean_loss,
        autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        tokens: int = TOKENS,
        memory_limit_bytes: int = SNAPSHOT_BYTES,
        compiled: bool = False,
        on_trouble: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.write, self.every, self.loss_of, self.autocast = write, every, loss_of, autocast
        self.tokens, self.memory_limit_bytes = tokens, memory_limit_bytes
        self.compiled, self.on_trouble = compiled, on_trouble
        self._step = 0

    def wants(self, step: int) -> bool:
        self._step = step
        return self.every > 0 and step % self.every == 0

    def before_forward(self, model: nn.Module, batch: Any) -> None:
        if not self.wants(self._step):
            return
        try:
            self.write(self._step, self._recorded(model, batch))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.on_trouble(say("snapshot.memory", step=self._step))
        except UserError as error:
            self.on_trouble(say("snapshot.trouble", step=self._step, error=error.message))

    def _recorded(self, model: nn.Module, batch: Any) -> Trace:
        parameters = [p for p in model.parameters() if p.requires_grad]
        ids, targets = (t[:1, : self.tokens].to(parameters[0].device) for t in (batch.ids, batch.targets))
        with untouched(model), torch.enable_grad(), trace("snapshot", memory_limit_bytes=self.memory_limit_bytes) as t:
            with self.autocast():
                loss = self.loss_of(model, ids, targets)
            torch.autograd.grad(loss, parameters, allow_unused=True)
        t.notes.append(say("snapshot.note", step=self._step, tokens=ids.shape[1]))
        if self.compiled:
            t.notes.append(say("snapshot.compiled"))
        return t
