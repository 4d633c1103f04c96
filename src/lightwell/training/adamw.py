"""AdamW: Adam's moments, with a weight decay that does not pass through them (Loshchilov and Hutter 2019).

The kernel is torch's, for all tensors at once. It is called directly: an optimizer of torch.optim imports torch's
compiler when it is made, which takes as long as hundreds of steps of a small model (LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AdamW:
    """Updates `weights`, each by its `.grad`; those without one stay as they are.

    moments: for each weight that was updated its first and second moment and how many updates that were (`exp_avg`,
    `exp_avg_sq`, `step`, as torch.optim names them).
    """

    def __init__(self, weights: Sequence[Tensor], betas: tuple[float, float], eps: float) -> None:
        self.weights = list(weights)
        self.betas = betas
        self.eps = eps
        self.moments: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, learning_rate: float, weight_decay: float, apply: Tensor) -> None:
        """One update. Decay is for matrices: biases and norms have nothing to shrink. `apply`: 0-D bool, on the
        weights' device; where False nothing changes, without a wait."""
        if apply.device.type == "mps" and not apply:  # its kernel passes over `found_inf`; this waits
            return
        skip = (~apply).float()
        given = [(weight, weight.grad) for weight in self.weights if weight.grad is not None]
        matrices = [pair for pair in given if pair[0].ndim >= 2]
        vectors = [pair for pair in given if pair[0].ndim < 2]
        for decay, pairs in ((weight_decay, matrices), (0.0, vectors)):
            if not pairs:
                continue
            weights, gradients = [weight for weight, _ in pairs], [gradient for _, gradient in pairs]
            moments = [self._moments_of(weight) for weight in weights]
            steps = [each["step"] for each in moments]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                weights,
                gradients,
                [each["exp_avg"] for each in moments],
                [each["exp_avg_sq"] for each in moments],
                [],
                steps,
                lr=learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
                found_inf=skip,  # the kernel then skips, as it does under a GradScaler
            )
            torch._foreach_sub_(steps, [skip] * len(steps))

    def _moments_of(self, weight: Tensor) -> dict[str, Tensor]:
        if weight not in self.moments:
            self.moments[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        return self.moments[weight]
