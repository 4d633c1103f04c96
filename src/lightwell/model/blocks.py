"""Running one block, with or without keeping its activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as compute_again


def run_block(block: nn.Module, x: Tensor, *others: Any, checkpoint: bool) -> Tensor:
    """`block(x, *others)`. With `checkpoint` only the arguments are kept for the backward pass, which computes the
    block again, with the same random numbers for its dropout (Chen et al. 2016)."""
    if checkpoint and torch.is_grad_enabled():
        return compute_again(block, x, *others, use_reentrant=False)
    return block(x, *others)
