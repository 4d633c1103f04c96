"""RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps), times one learned gain per component."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightwell.model.kernels import fused


class RMSNorm(nn.Module):
    """Normalises the last dimension, of size `dim`; in float32 at least, whatever the dtype of `x`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if fused.usable(x, gains=(self.weight,)) and x.shape[-1:] == self.weight.shape:
            return fused.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
