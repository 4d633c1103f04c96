"""The last product and the loss: how surprised the model is by each token that really followed.

    N  tokens (batch times time)      C  emb_dim      V  vocab_size      R  rows of one piece

The loss of a token is -log softmax(logits)[target]. `plain_cross_entropy_sum` says it in two lines; it stores the
logits (N, V), their logarithmic softmax and its gradient, for a large vocabulary the largest things in training.
`PiecewiseCrossEntropy` takes R rows at a time and, while their logits are in the processor's cache, also works out what
the backward pass will want: with p = softmax(logits),

    d loss / d logits = p - 1 at the target,    d hidden = d logits  weight,    d weight = d logits^T  hidden.

The same three products, and never more than (R, V) of anything at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lightwell.model.kernels import fused

IGNORE = -100  # a target that does not count, as torch's ignore_index
# Logits of one piece, in float32. CPU: about a cache. GPU: products large enough to keep it busy.
PIECE_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, *, plain: bool = False) -> tuple[Tensor, Tensor]:
    """Sum of the losses of all rows, in nats, and how many rows counted.

    hidden: (N, C), the final residual stream. weight: (V, C), the head. targets: (N,) int64, -100 where none counts.
    Returns (loss_sum, n): 0-D float32 (float64 for float64 inputs), and 0-D int64. Under autocast the products are in
    its dtype; the softmax is in float32 at least. `plain`: the textbook form whatever the size.
    """
    rows = piece_rows(weight.shape[0], weight.shape[1], weight.device.type)
    few = hidden.shape[0] <= rows and not fused.usable(hidden)
    if plain or few:
        loss = plain_cross_entropy_sum(hidden, weight, targets)
    elif torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss = PiecewiseCrossEntropy.apply(hidden, weight, targets, rows)
    else:
        pieces = zip(hidden.split(rows), targets.split(rows))
        loss = torch.stack([plain_cross_entropy_sum(h, weight, t) for h, t in pieces]).sum()
    return loss, (targets != IGNORE).sum()


def plain_cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The sum of the losses, as the textbook has it."""
    logits = F.linear(hidden, weight)  # (N, V)
    return F.cross_entropy(logits.to(_wide(logits.dtype)), targets, ignore_index=IGNORE, reduction="sum")


def piece_rows(vocab_size: int, emb_dim: int, device: str = "cpu") -> int:
    """R: how many rows of logits are worked on at once, on a device of this type.

    As many as PIECE_BYTES hold, but not so few that adding to d weight, V C numbers read and written for each piece,
    costs more than going over the logits, V R numbers, some eight times.
    """
    return max(PIECE_BYTES.get(device, PIECE_BYTES["cuda"]) // (4 * vocab_size), emb_dim // 2, 1)


class PiecewiseCrossEntropy(torch.autograd.Function):
    """The sum of the losses by pieces of rows; both gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        with torch.autocast(device, enabled=False):
            W = weight.to(dtype)  # (V, C)
            loss = torch.zeros((), dtype=_wide(hidden.dtype), device=hidden.device)
            d_hidden = torch.empty_like(hidden) if need_hidden else None
            # Pieces are added up in float32 at least: in bfloat16 the small ones would vanish beside the sum.
            d_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if need_weight else None
            for begin in range(0, hidden.shape[0], rows):
                piece = slice(begin, begin + rows)
                d_rows = None if d_hidden is None else d_hidden[piece]
                loss += _piece(hidden[piece].to(dtype), W, targets[piece, None], d_rows, d_weight)
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * upstream.to(d_hidden.dtype),
            None if d_weight is None else d_weight * upstream.to(d_weight.dtype),
            None,
            None,
        )


def _piece(h: Tensor, W: Tensor, target: Tensor, d_hidden: Tensor | None, d_weight: Tensor | None) -> Tensor:
    """The loss of R rows: `h` (R, C), `target` (R, 1). Fills `d_hidden` (R, C) and adds to `d_weight` (V, C)."""
    counts = target != IGNORE  # (R, 1)
    logits = h @ W.T  # (R, V)
    if fused.usable(logits):
        loss = fused.softmax_less_target(logits, target[:, 0]).sum()
        d_logits = logits
    else:
        target = target.where(counts, 0)  # any token: its loss is not added
        logits = logits.to(_wide(h.dtype))
        logits -= logits.amax(dim=1, keepdim=True)  # exp cannot overflow, and the loss does not change
        at_target = logits.gather(1, target)  # (R, 1)
        p = logits.exp_()
        total = p.sum(dim=1, keepdim=True)
        loss = (total.log() - at_target).where(counts, 0).sum()
        p /= total
        d_logits = p.scatter_add_(1, target, torch.full_like(total, -1.0)).to(h.dtype)
    if d_hidden is not None:
        d_hidden.copy_((d_logits @ W).where(counts, 0))
    if d_weight is not None:
        h = h.where(counts, 0)
        if h.dtype == d_weight.dtype:
            d_weight.addmm_(d_logits.T, h)
        else:
            d_weight += d_logits.T @ h
    return loss


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
