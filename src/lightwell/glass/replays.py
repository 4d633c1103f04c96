"""Operations that a plain rerun would not repeat: what was random stays as it was, what is written unsaid is copied."""

from __future__ import annotations

import torch
from torch import Tensor

from lightwell.glass.call import RECOMPUTE, Call


def _dropped_again(call: Call, captured: Call) -> tuple[Tensor, ...]:
    """native_dropout with the captured mask."""
    x, p, mask = call.args[0], call.args[1], captured.outputs[1]
    return (x * mask / (1 - p) if p < 1 else x * 0, mask)


def _sloped_again(call: Call, captured: Call) -> tuple[Tensor, ...]:
    """rrelu with the captured slopes, which are the outputs of negative inputs over these."""
    before, x = captured.args[0], call.args[0]
    slopes = captured.outputs[0] / torch.where(before == 0, 1.0, before)
    return (torch.where(before > 0, x, x * slopes),)


def _without_updates(call: Call, captured: Call) -> tuple[Tensor, ...]:
    """Batch norm on copies of the running statistics, which these kernels update without saying so in their schema."""
    named = call.named()
    running = [name for name in ("running_mean", "running_var") if isinstance(named.get(name), Tensor)]
    return call.with_inputs({call.path(name): named[name].clone() for name in running}).rerun()


def _softmax_again(call: Call, captured: Call) -> tuple[Tensor, ...]:
    """Accelerators have a softmax that reads half precision and writes single: any precision will do here."""
    function = torch.softmax if call.name == "_softmax" else torch.log_softmax
    return (function(call.args[0].to(captured.outputs[0].dtype), call.args[1]),)


def _between_zero_and_one(call: Call, captured: Call) -> tuple[Tensor, ...]:
    """binary_cross_entropy refuses probabilities outside of 0 to 1: one that stands at an end stays there."""
    inputs = [call.path("self"), call.path("target")]
    return call.with_inputs({path: call.get(path).clamp(0, 1) for path in inputs}).rerun()


RECOMPUTE |= {
    "binary_cross_entropy": _between_zero_and_one,
    "native_dropout": _dropped_again,
    "rrelu_with_noise": _sloped_again,
    "native_batch_norm": _without_updates,
    "cudnn_batch_norm": _without_updates,
    "miopen_batch_norm": _without_updates,
    "_softmax": _softmax_again,
    "_log_softmax": _softmax_again,
}
