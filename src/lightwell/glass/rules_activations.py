"""Rules of activations beyond those of GPT: element by element, most with a kink where two pieces meet.

At a kink the derivative does not exist; each row takes the slope that PyTorch takes there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwell.glass.call import Call, Path
from lightwell.glass.index_map import Index, first_elementwise
from lightwell.glass.rule import rule


@rule("leaky_relu", formula="dz/dx = [x > 0] + negative_slope * [x <= 0]", kink="x = 0")
def leaky_relu(dz, x, *, negative_slope=0.01):
    return torch.where(x > 0, dz, dz * negative_slope)


@rule("_prelu_kernel", "prelu", formula="dz/dx = [x > 0] + w * [x <= 0]; dz/dw = x * [x <= 0]", kink="x = 0")
def prelu(dz, x, w):
    return torch.where(x > 0, dz, dz * w), torch.where(x > 0, 0.0, dz * x)


@rule(
    "elu",
    formula="dz/dx = scale * ([x > 0] + input_scale * alpha * [x <= 0] * exp(x * input_scale))",
    kink="x = 0",
)
def elu(dz, x, *, alpha=1, scale=1, input_scale=1):
    return dz * scale * torch.where(x > 0, 1.0, input_scale * alpha * (x * input_scale).exp())


@rule("celu", formula="dz/dx = [x > 0] + [x <= 0] * exp(x / alpha)")
def celu(dz, x, *, alpha=1.0):
    return dz * torch.where(x > 0, 1.0, (x / alpha).exp())


@rule("selu", formula="dz/dx = 1.0507009873554805 * ([x > 0] + 1.6732632423543772 * [x <= 0] * exp(x))", kink="x = 0")
def selu(dz, x):
    return elu(dz, x, alpha=1.6732632423543772, scale=1.0507009873554805)


@rule(
    "softplus",
    formula="dz/dx = [x * beta > threshold] + [x * beta <= threshold] * sigmoid(x * beta)",
    kink="x * beta = threshold",
)
def softplus(dz, x, *, beta=1, threshold=20):
    return dz * torch.where(x * beta > threshold, 1.0, (x * beta).sigmoid())


@rule("hardtanh", formula="dz/dx = [min_val < x < max_val]", kink="x = min_val; x = max_val")
def hardtanh(dz, x, *, min_val=-1, max_val=1):
    return dz * ((min_val < x) & (x < max_val))


@rule("relu6", formula="dz/dx = [0 < x < 6]", kink="x = 0; x = 6")
def relu6(dz, x):
    return dz * ((x > 0) & (x < 6))


@rule("hardsigmoid", formula="dz/dx = [-3 < x < 3] / 6", kink="x = -3; x = 3")
def hardsigmoid(dz, x):
    return dz * ((x > -3) & (x < 3)) / 6


@rule("hardswish", formula="dz/dx = [x >= 3] + [-3 < x < 3] * (x / 3 + 1 / 2)", kink="x = -3; x = 3")
def hardswish(dz, x):
    return dz * torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))


@rule("mish", formula="dz/dx = t + x * sigmoid(x) * (1 - t**2) with t = tanh(log(1 + exp(x)))")
def mish(dz, x):
    t = torch.nn.functional.softplus(x).tanh()
    return dz * (t + x * x.sigmoid() * (1 - t * t))


@rule("log_sigmoid_forward", formula="dz/dx = sigmoid(-x)")
def log_sigmoid(dz, x):
    return dz * (-x).sigmoid()


@rule("softshrink", "hardshrink", formula="dz/dx = [abs(x) > lambd]", kink="x = lambd; x = -lambd")
def shrink(dz, x, *, lambd=0.5):
    return dz * (x.abs() > lambd)


@rule("threshold", formula="dz/dx = [x > threshold]", kink="x = threshold")
def threshold(dz, x, *, threshold):
    return dz * (x > threshold)


@rule("rrelu_with_noise", formula="dz/dx = [x > 0] + [x <= 0] * z / x", kink="x = 0", reads=first_elementwise)
def rrelu(dz, x, *, z):
    """The slope drawn at random for a negative element can be read from its output."""
    return torch.where(x > 0, dz, dz * z / torch.where(x == 0, 1.0, x))


def _halves(call: Call, out: Index) -> dict[Path, Tensor]:
    """glu: its own place in the first half, and the same place in the second."""
    ((path, x),) = call.float_inputs().items()
    dim = call.named()["dim"] % x.dim()
    second = list(out)
    second[dim] += x.shape[dim] // 2
    return {path: torch.tensor([list(out), second])}


@rule(
    "glu",
    formula="dz[i]/dx[j] = [j=i] * s + [j = i + len(z)] * x[i] * s * (1 - s) with s = sigmoid(x[i + len(z)])",
    reads=_halves,
)
def glu(dz, x, *, dim=-1):
    a, b = x.chunk(2, dim)
    gate = b.sigmoid()
    return torch.cat([dz * gate, dz * a * gate * (1 - gate)], dim)
