"""The numbers a model starts from.

GPT-2's: every matrix and embedding normal with standard deviation 0.02, biases 0, norms 1. The two matrices of a block
that write to the residual stream (`attn.out`, `mlp.down`) are scaled by 1 / sqrt(2 n_layers), so that the sum of all
2 n_layers of them is as wide as one alone (Radford et al. 2019, section 2.3). With zeros instead, each block begins as
the identity (Zhang et al. 2019, "Fixup"); in our runs it then learns more slowly (LOG.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STD = 0.02
WRITES_TO_STREAM = ("attn.out", "mlp.down")


class Linear(nn.Linear):
    """nn.Linear, without the numbers that torch would draw only for `initialise` to draw others."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding, without numbers yet."""

    def reset_parameters(self) -> None:
        pass


@torch.no_grad()
def initialise(
    model: nn.Module, generator: torch.Generator | None = None, *, zero_output_projections: bool = False
) -> None:
    """Sets every parameter of a GPT2 or Modern in place, drawing from `generator` (torch's global one if None).

    Numbers are drawn on the generator's own device in float32 and then copied, so that one seed gives the same weights
    on every device and in every dtype.
    """
    n_layers = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            _fill_normal(module.weight, STD, generator)
        elif isinstance(module, nn.Linear):
            if module.bias is not None:
                module.bias.zero_()
            if name == "head" and module.weight is model.get_parameter("tok_emb.weight"):
                continue  # tied: drawn with the embedding
            if not name.endswith(WRITES_TO_STREAM):
                _fill_normal(module.weight, STD, generator)
            elif zero_output_projections:
                module.weight.zero_()
            else:
                _fill_normal(module.weight, STD / math.sqrt(2 * n_layers), generator)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):  # the norms
            module.weight.fill_(1.0)
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.zero_()


def _fill_normal(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    if parameter.is_meta:
        return  # a model without storage, built to be filled from a file
    device = generator.device if generator is not None else "cpu"
    numbers = torch.empty(parameter.shape, device=device, dtype=torch.float32).normal_(0.0, std, generator=generator)
    parameter.copy_(numbers)
