"""The pulse of a training run: every so many steps, what each layer's numbers look like, at next to no cost.

What the step itself made is read where it lies: weights, gradients, updates. What happens inside the layers is found
by a *replay* beside the step: a small part of the same batch goes through the model once more, forward and backward,
with the random streams put back afterwards and gradients handed to nobody. So watching never changes a run, and it
works the same for compiled, checkpointed and replicated models; the replay itself runs eagerly.

Rows are (layer, name, value), layer being a parameter's name, a module's path, or "" for the whole:

    weight_rms  gradient_rms  update_rms    of each parameter: root of the mean square of its elements
    update_ratio                            update_rms / weight_rms of this step
    row_spread                              how much the rows of a matrix differ: about 1, or 0 if all are equal
    activation_rms  backward_rms            of a module's output, and of the gradient that comes back to it
    saturated                               share of elements where an activation function's slope is nearly zero
    dead_units                              share of units whose slope was nearly zero for every token of a window
    attention_entropy  .._entropy_lowest    of all heads, and of the lowest: 1 looks everywhere alike, 0 at one token
    attention_score_max                     the largest attention score before the softmax, in size
    logit_rms  logit_max                    of the model's answers
    replay_loss  replay_loss_after          nats per token of the replayed part, before and after the step's update
    noise_small  noise_big                  squared gradient norm of a part of the batch, and of all of it
    noise_small_size  noise_big_size        sequences in the part, and in the whole

From the last four follows the gradient noise scale (McCandlish et al. 2018, appendix A.1; `noise_scale`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightwell.glass.watching import Seen, watch
from lightwell.runtime.device import is_out_of_memory
from lightwell.runtime.observer import Observer

Row = tuple[str, str, float]

SHARE = 0.01  # of training time that replays may take, by the count of tokens
SAMPLE = 1 << 16  # elements of a parameter from which its update is measured
WINDOW = 4  # pulses over which a unit must be dead to be called so
SHORTEST = 16  # tokens
FREE = 4  # measurements that are made however long they take: a diagnosis needs some


class Pulse(Observer):
    """Measures the first step and each `every` steps, and hands the rows of a step to `write(step, rows)`.

    loss_of     (model, ids, targets) -> mean loss with its graph, run on a part of the batch's rows and tokens
    logits_of   (model, ids) -> the model's answers
    autocast    the context in which training runs its forward passes
    share       of the time of training that measuring may take: after the first few, a step that is due is left out
                while more than that was spent (a small model is measured in the time of a step); None: no limit
    on_trouble  told, in a sentence, when a replay had to be left out

    A batch has `ids` and `targets` of shape (B, T). Without memory for a replay its rows are left out and training goes
    on. Models whose parameters are spread over processes are measured without a replay.
    """

    def __init__(
        self,
        write: Callable[[int, list[Row]], None],
        every: int,
        *,
        loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        logits_of: Callable[[nn.Module, Tensor], Tensor] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        share: float | None = None,
        on_trouble: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.write = write
        self.every = every
        self.loss_of = loss_of or mean_loss
        self.logits_of = logits_of or (lambda model, ids: model(ids))
        self.autocast = autocast
        self.share = share
        self.on_trouble = on_trouble
        self._step: int | None = None  # the step that is wanted now
        self._measure = False  # whether it is measured
        self._began: float | None = None
        self._spent, self._taken = 0.0, 0  # seconds, measured steps
        self._open: _Open | None = None
        self._alive: dict[str, deque[Tensor]] = {}

    def wants(self, step: int) -> bool:
        """A step that is due, and the step after it, before which the update of the first can be seen."""
        self._step, self._measure = step, self._due(step)
        return self._measure or self._open is not None

    def before_forward(self, model: nn.Module, batch: Any) -> None:
        with self._timed():
            self._close(model)
            if self._step is not None and self._measure:
                self._taken += 1
                self._begin(self._step, model, batch)

    def _begin(self, step: int, model: nn.Module, batch: Any) -> None:
        parameters = dict(model.named_parameters())
        here = self._open = _Open(step)
        if not any(_is_spread(p) for p in parameters.values()):
            device = next(iter(parameters.values())).device
            here.ids, here.targets = self._part(batch.ids).to(device), self._part(batch.targets).to(device)
            here.whole = batch.ids.shape
            self._replay(model, lambda: self._look(model, here))
            here.before = {name: _sample(p) for name, p in parameters.items()}
            here.values |= {(name, "row_spread"): row_spread(p) for name, p in parameters.items() if p.dim() == 2}
        here.values |= {(name, "weight_rms"): rms for name, rms in _rms_of(parameters).items()}

    def after_backward(self, model: nn.Module) -> None:
        here = self._open
        if here is not None and here.step == self._step:
            with self._timed():
                self._gradients(model, here)

    def _gradients(self, model: nn.Module, here: _Open) -> None:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        rms = _rms_of(gradients)
        here.values |= {(name, "gradient_rms"): value for name, value in rms.items()}
        if ("", "noise_small") in here.values:
            squares = [value.float().square() * gradients[name].numel() for name, value in rms.items()]
            here.values["", "noise_big"] = torch.stack(squares).sum()

    def at_end(self) -> None:
        """The last measured step, whose update nobody saw any more."""
        self._close(None)

    def _due(self, step: int) -> bool:
        now = time.perf_counter()
        self._began = self._began or now
        dear = self.share is not None and self._spent > self.share * (now - self._began)
        return self.every > 0 and (step == 1 or step % self.every == 0) and (self._taken < FREE or not dear)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._spent += time.perf_counter() - began

    def _close(self, model: nn.Module | None) -> None:
        """Now that its update has happened: finish the open step and hand its rows on."""
        here, self._open = self._open, None
        if here is None:
            return
        if model is not None and here.before:
            parameters = dict(model.named_parameters())
            moved = {name: _sample(parameters[name]) - old for name, old in here.before.items() if name in parameters}
            for name, update in _rms_of(moved).items():
                here.values[name, "update_rms"] = update
                here.values[name, "update_ratio"] = update / _rms(here.before[name]).clamp(min=1e-30)
            if ("", "replay_loss") in here.values:
                self._replay(model, lambda: self._look_again(model, here))
        self.write(here.step, _rows(here.values))

    def _replay(self, model: nn.Module, look: Callable[[], None]) -> None:
        try:
            with untouched(model), self.autocast():
                look()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.on_trouble(
                "There is not enough memory to look inside the layers; only weights and gradients are watched."
            )

    def _look(self, model: nn.Module, here: _Open) -> None:
        """Everything that a part of the batch shows on its way through the model and back."""
        with torch.enable_grad():
            with watch(model) as seen:
                loss = self.loss_of(model, here.ids, here.targets)
            used = [p for p in model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, used, allow_unused=True)
        values = {("", "replay_loss"): loss.detach()} | self._inside(seen)
        if here.ids.numel() < here.whole.numel():
            norms = torch._foreach_norm([g for g in gradients if g is not None])
            values["", "noise_small"] = torch.stack([norm.float().square() for norm in norms]).sum()
            values["", "noise_small_size"] = loss.new_tensor(here.ids.numel() / here.whole[1])
            values["", "noise_big_size"] = loss.new_tensor(here.whole[0])
        with torch.no_grad():
            logits = self.logits_of(model, here.ids[:1, : 4 * SHORTEST]).float()
        values["", "logit_rms"], values["", "logit_max"] = _rms(logits), logits.abs().max()
        here.values |= values

    def _look_again(self, model: nn.Module, here: _Open) -> None:
        with torch.no_grad():
            here.values["", "replay_loss_after"] = self.loss_of(model, here.ids, here.targets)

    def _inside(self, seen: Seen) -> dict[tuple[str, str], Tensor]:
        values = dict(seen.values)
        for layer, alive in seen.alive.items():
            window = self._alive.setdefault(layer, deque(maxlen=WINDOW))
            if window and window[0].shape != alive.shape:
                window.clear()
            window.append(alive)
            if len(window) == WINDOW:
                values[layer, "dead_units"] = (~torch.stack(list(window)).any(0)).float().mean()
        return values

    def _part(self, rows: Tensor) -> Tensor:
        """So many rows, or so many tokens of one if even that is too much, that replays take their SHARE of time."""
        B, T = rows.shape
        affordable = SHARE * self.every * B
        n_rows = min(max(1, int(affordable)), max(1, B // 2), 8)
        n_tokens = T if affordable >= 1 else min(T, max(SHORTEST, int(T * affordable)))
        return rows[:n_rows, :n_tokens]


@dataclass
class _Open:
    """A measured step whose update has not happened yet."""

    step: int
    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)  # a sample of each parameter
    ids: Tensor = field(default_factory=lambda: torch.empty(0))
    targets: Tensor = field(default_factory=lambda: torch.empty(0))
    whole: torch.Size = torch.Size()  # noqa: RUF009  the shape of the batch


def mean_loss(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of one of Lightwell's models, which give the sum and the count."""
    loss_sum, n_targets = model(ids, targets)
    return loss_sum / n_targets.clamp(min=1)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Random streams and the model's buffers (the running means of a batch norm) are put back at the end.

    Inside, the streams begin at the same place each time: what is run twice drops out the same.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device for p in model.parameters() if p.device.type in ("cuda", "mps")}
    streams = [torch.default_generator, *(_generator(device) for device in devices)]
    states = [stream.get_state() for stream in streams]
    try:
        for stream in streams:
            stream.manual_seed(0)
        yield
    finally:
        for stream, state in zip(streams, states, strict=True):
            stream.set_state(state)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _generator(device: torch.device) -> torch.Generator:
    """The random stream that layers on this device draw from."""
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.cuda.default_generators[device.index or 0]


def noise_scale(small: Sequence[float], big: Sequence[float], small_size: float, big_size: float) -> float | None:
    """The batch size, in sequences, at which noise and signal of the gradient are equal; None if the noise hides it.

    small, big: squared gradient norms at the two batch sizes, of many steps. Each pair gives an unbiased but noisy
    estimate of |G|^2 and of the trace of the noise; only the ratio of their means is worth something.
    """
    if not small or small_size >= big_size:
        return None
    mean_small, mean_big = sum(small) / len(small), sum(big) / len(big)
    signal = (big_size * mean_big - small_size * mean_small) / (big_size - small_size)
    noise = (mean_small - mean_big) / (1 / small_size - 1 / big_size)
    return noise / signal if signal > 0 and noise > 0 else None


def row_spread(weight: Tensor, most: int = 64) -> Tensor:
    """How far the rows of a matrix are from their mean row, over how large they are.

    Rows that are all equal stay equal: their units do the same and learn the same. Of a large matrix `most` rows and 16
    times as many columns are looked at.
    """
    part = weight.detach()[:most, : 16 * most].float()
    return _rms(part - part.mean(0)) / _rms(part).clamp(min=1e-30)


def _rows(values: Mapping[tuple[str, str], Tensor]) -> list[Row]:
    """All numbers in one wait for the device. One that is not finite stays so: it is the news."""
    if not values:
        return []
    numbers = torch.stack([value.detach().float() for value in values.values()])
    return [(layer, name, float(number)) for (layer, name), number in zip(values, numbers.tolist(), strict=True)]


def _rms_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The root mean square of many tensors in a few kernels."""
    if not tensors:
        return {}
    plain = [t.detach() for t in tensors.values()]
    norms = torch._foreach_norm(plain)
    scaled = [_whole(n) / math.sqrt(t.numel()) for n, t in zip(norms, plain, strict=True)]
    return dict(zip(tensors, scaled, strict=True))


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.detach().float()) / math.sqrt(max(1, tensor.numel()))


def _sample(parameter: Tensor) -> Tensor:
    """A copy of evenly spaced elements, the same ones every time; all of them if they are few."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)].clone()


def _is_spread(parameter: Tensor) -> bool:
    return hasattr(parameter, "full_tensor")


def _whole(norm: Tensor) -> Tensor:
    """The norm over all processes, where each holds a part."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
