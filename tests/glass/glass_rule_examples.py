"""One small call, in float64, for every name in the table: the shape that the row's formula is written for.

Matrices are square where they may be, so that a transposed gradient has the right shape and must be caught by its
numbers. Whole numbers, masks and indices come from a generator of their own, which always begins at the same place: two
examples drawn with different seeds differ in their real numbers only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightwell.glass.call import Call

aten: Any = torch.ops.aten
run = Call.run


class Draw:
    """Random tensors: real numbers by the seed, discrete ones always the same."""

    def __init__(self, seed: int) -> None:
        self.real = torch.Generator().manual_seed(seed)
        self.discrete = torch.Generator().manual_seed(7)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.real, dtype=torch.float64)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.real, dtype=torch.float64) * (high - low) + low

    def index(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.discrete)

    def order(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.discrete)

    def mask(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.discrete) < 0.5

    def regular(self, n: int) -> Tensor:
        """A matrix that is far from singular."""
        return self(n, n) + 3 * torch.eye(n, dtype=torch.float64)


def dropped(d: Draw) -> Call:
    x, mask = d(3, 3), d.mask(3, 3)
    return Call(aten.native_dropout.default, (x, 0.25, True), {}, (x * mask / 0.75, mask))


def attended(op: Any, *rest: Any, bias: bool = False, **options: Any) -> Callable[[Draw], Call]:
    """A kernel that this machine may lack: its outputs are those of the plain computation."""

    def example(d: Draw) -> Call:
        inputs = [d(1, 1, 3, 2) for _ in range(3)] + ([d(1, 1, 3, 3)] if bias else [])
        call = Call(op, (*inputs, *rest), {"scale": 0.6, **options}, (d(1, 1, 3, 2), d(1, 1, 3)))
        return Call(op, call.args, call.kwargs, call.replay())

    return example


def unary(op: Any, low: float | None = None, high: float = 1.0, *rest: Any, **options: Any) -> Callable[[Draw], Call]:
    """A function of one number, on normal numbers or on those between two bounds."""
    return lambda d: run(op, d(3, 3) if low is None else d.between(low, high, 3, 3), *rest, **options)


def binary(op: Any, *rest: Any, **options: Any) -> Callable[[Draw], Call]:
    return lambda d: run(op, d(2, 2), d(2, 2), *rest, **options)


EXAMPLES: dict[str, Callable[[Draw], Call]] = {
    # The front door.
    "add": binary(aten.add.Tensor, alpha=0.7),
    "sub": binary(aten.sub.Tensor, alpha=0.7),
    "neg": unary(aten.neg.default),
    "mul": binary(aten.mul.Tensor),
    "div": binary(aten.div.Tensor),
    "pow": lambda d: run(aten.pow.Tensor_Tensor, d.between(0.5, 2, 2, 2), d(2, 2)),
    "exp": unary(aten.exp.default),
    "log": unary(aten.log.default, 0.5, 2),
    "sqrt": unary(aten.sqrt.default, 0.5, 2),
    "rsqrt": unary(aten.rsqrt.default, 0.5, 2),
    "sin": unary(aten.sin.default),
    "cos": unary(aten.cos.default),
    "sigmoid": unary(aten.sigmoid.default),
    "tanh": unary(aten.tanh.default),
    "relu": unary(aten.relu.default),
    "silu": unary(aten.silu.default),
    "gelu": unary(aten.gelu.default, approximate="tanh"),
    "where": lambda d: run(aten.where.self, d.mask(2, 2), d(2, 2), d(2, 2)),
    "masked_fill": lambda d: run(aten.masked_fill.Tensor, d(2, 2), d.mask(2, 2), d()),
    "cat": lambda d: run(aten.cat.default, [d(3), d(3)]),
    "native_dropout": dropped,
    "sum": lambda d: run(aten.sum.default, d(4)),
    "mean": lambda d: run(aten.mean.default, d(4)),
    "mm": lambda d: run(aten.mm.default, d(3, 3), d(3, 3)),
    "addmm": lambda d: run(aten.addmm.default, d(3, 3), d(3, 3), d(3, 3), beta=0.5, alpha=0.7),
    "bmm": lambda d: run(aten.bmm.default, d(2, 2, 2), d(2, 2, 2)),
    "embedding": lambda d: run(aten.embedding.default, d(3, 3), d.index(3, 4)),
    "native_layer_norm": lambda d: run(aten.native_layer_norm.default, d(1, 4), [4], d(4), d(4), 0.1),
    "_fused_rms_norm": lambda d: run(aten._fused_rms_norm.default, d(1, 4), [4], d(4), 0.1),
    "_softmax": lambda d: run(aten._softmax.default, d(4), 0, False),
    "_safe_softmax": lambda d: run(aten._safe_softmax.default, d(4), 0),
    "_log_softmax": lambda d: run(aten._log_softmax.default, d(4), 0, False),
    "nll_loss_forward": lambda d: run(
        aten.nll_loss_forward.default, d(3, 3), torch.tensor([1, -100, 0]), None, 1, -100
    ),
    "_scaled_dot_product_flash_attention_for_cpu": lambda d: run(
        aten._scaled_dot_product_flash_attention_for_cpu.default, *(d(1, 1, 3, 2) for _ in range(3)), scale=0.6
    ),
    "_scaled_dot_product_flash_attention": attended(aten._scaled_dot_product_flash_attention.default),
    "_scaled_dot_product_efficient_attention": attended(
        aten._scaled_dot_product_efficient_attention.default, True, bias=True
    ),
    "_scaled_dot_product_cudnn_attention": attended(aten._scaled_dot_product_cudnn_attention.default, True, bias=True),
    "_scaled_dot_product_fused_attention_overrideable": attended(
        aten._scaled_dot_product_fused_attention_overrideable.default, bias=True
    ),
    # Activations.
    "leaky_relu": unary(aten.leaky_relu.default, None, 0, 0.2),
    "_prelu_kernel": binary(aten._prelu_kernel.default),
    "prelu": lambda d: run(aten.prelu.default, d(3), d(1)),
    "elu": unary(aten.elu.default, None, 0, 1.3, 0.8, 0.6),
    "celu": unary(aten.celu.default, None, 0, 1.3),
    "selu": unary(aten.selu.default),
    "softplus": unary(aten.softplus.default, None, 0, 1.3, 1.0),
    "hardtanh": unary(aten.hardtanh.default, None, 0, -0.5, 0.5),
    "relu6": lambda d: run(aten.relu6.default, 5 * d(3, 3)),
    "hardsigmoid": lambda d: run(aten.hardsigmoid.default, 3 * d(3, 3)),
    "hardswish": lambda d: run(aten.hardswish.default, 3 * d(3, 3)),
    "mish": unary(aten.mish.default),
    "log_sigmoid_forward": unary(aten.log_sigmoid_forward.default),
    "softshrink": unary(aten.softshrink.default),
    "hardshrink": unary(aten.hardshrink.default),
    "threshold": unary(aten.threshold.default, None, 0, 0.1, 5.0),
    "rrelu_with_noise": lambda d: run(
        aten.rrelu_with_noise.default, d(3, 3), torch.zeros(3, 3).double(), 0.1, 0.4, True
    ),
    "glu": lambda d: run(aten.glu.default, d(6), 0),
    # Arithmetic.
    "reciprocal": unary(aten.reciprocal.default, 0.5, 2),
    "square": unary(aten.square.default),
    "abs": unary(aten.abs.default),
    "exp2": unary(aten.exp2.default),
    "expm1": unary(aten.expm1.default),
    "log2": unary(aten.log2.default, 0.5, 2),
    "log10": unary(aten.log10.default, 0.5, 2),
    "log1p": unary(aten.log1p.default, -0.5, 2),
    "tan": unary(aten.tan.default, -1, 1),
    "asin": unary(aten.asin.default, -0.9, 0.9),
    "acos": unary(aten.acos.default, -0.9, 0.9),
    "atan": unary(aten.atan.default),
    "sinh": unary(aten.sinh.default),
    "cosh": unary(aten.cosh.default),
    "asinh": unary(aten.asinh.default),
    "acosh": unary(aten.acosh.default, 1.2, 3),
    "atanh": unary(aten.atanh.default, -0.9, 0.9),
    "erf": unary(aten.erf.default),
    "erfc": unary(aten.erfc.default),
    "erfinv": unary(aten.erfinv.default, -0.9, 0.9),
    "special_erfcx": unary(aten.special_erfcx.default),
    "special_ndtri": unary(aten.special_ndtri.default, 0.1, 0.9),
    "special_log_ndtr": unary(aten.special_log_ndtr.default),
    "special_entr": unary(aten.special_entr.default, 0.1, 2),
    "lgamma": unary(aten.lgamma.default, 0.5, 3),
    "digamma": unary(aten.digamma.default, 0.5, 3),
    "polygamma": lambda d: run(aten.polygamma.default, 2, d.between(0.5, 3, 3, 3)),
    "mvlgamma": unary(aten.mvlgamma.default, 2, 4, 3),
    "sinc": unary(aten.sinc.default),
    "logit": unary(aten.logit.default, 0.1, 0.9),
    "i0": unary(aten.i0.default),
    "special_i1": unary(aten.special_i1.default),
    "special_i0e": unary(aten.special_i0e.default),
    "special_i1e": unary(aten.special_i1e.default),
    "deg2rad": unary(aten.deg2rad.default),
    "rad2deg": unary(aten.rad2deg.default),
    "frac": unary(aten.frac.default),
    "frexp": unary(aten.frexp.Tensor),
    "nan_to_num": unary(aten.nan_to_num.default),
    "clamp": lambda d: run(aten.clamp.Tensor, 2 * d(3, 3), d.between(-1.5, 0.5, 3, 3), d.between(-0.5, 1.5, 3, 3)),
    "clamp_min": binary(aten.clamp_min.Tensor),
    "clamp_max": binary(aten.clamp_max.Tensor),
    "rsub": binary(aten.rsub.Tensor, alpha=0.7),
    "maximum": binary(aten.maximum.default),
    "minimum": binary(aten.minimum.default),
    "fmax": binary(aten.fmax.default),
    "fmin": binary(aten.fmin.default),
    "fmod": lambda d: run(aten.fmod.Tensor, 3 * d(2, 2), d.between(0.5, 2, 2, 2)),
    "remainder": lambda d: run(aten.remainder.Tensor, 3 * d(2, 2), d.between(0.5, 2, 2, 2)),
    "atan2": binary(aten.atan2.default),
    "hypot": binary(aten.hypot.default),
    "logaddexp": binary(aten.logaddexp.default),
    "logaddexp2": binary(aten.logaddexp2.default),
    "xlogy": lambda d: run(aten.xlogy.Tensor, d(2, 2), d.between(0.5, 2, 2, 2)),
    "special_xlog1py": lambda d: run(aten.special_xlog1py.default, d(2, 2), d.between(0.5, 2, 2, 2)),
    "copysign": binary(aten.copysign.Tensor),
    "ldexp": binary(aten.ldexp.Tensor),
    "lerp": lambda d: run(aten.lerp.Tensor, d(2, 2), d(2, 2), d(2, 2)),
    "addcmul": lambda d: run(aten.addcmul.default, d(2, 2), d(2, 2), d(2, 2), value=0.7),
    "addcdiv": lambda d: run(aten.addcdiv.default, d(2, 2), d(2, 2), d.between(0.5, 2, 2, 2), value=0.7),
    "div.Tensor_mode": binary(aten.div.Tensor_mode, rounding_mode=None),
    "div.Scalar_mode": lambda d: run(aten.div.Scalar_mode, d(3, 3), 0.7, rounding_mode=None),
    # Reductions.
    "prod": lambda d: run(aten.prod.default, d(4)),
    "cumprod": lambda d: run(aten.cumprod.default, d(4), 0),
    "cumsum": lambda d: run(aten.cumsum.default, d(4), 0),
    "logcumsumexp": lambda d: run(aten.logcumsumexp.default, d(4), 0),
    "cummax": lambda d: run(aten.cummax.default, d(4), 0),
    "cummin": lambda d: run(aten.cummin.default, d(4), 0),
    "nansum": lambda d: run(aten.nansum.default, d(4)),
    "logsumexp": lambda d: run(aten.logsumexp.default, d(4), [0]),
    "var": lambda d: run(aten.var.correction, d(4)),
    "std": lambda d: run(aten.std.correction, d(4)),
    "var_mean": lambda d: run(aten.var_mean.correction, d(4)),
    "std_mean": lambda d: run(aten.std_mean.correction, d(4)),
    "linalg_vector_norm": lambda d: run(aten.linalg_vector_norm.default, d(4), 3),
    "norm": lambda d: run(aten.norm.Scalar, d(4), 3),
    "dist": lambda d: run(aten.dist.default, d(4), d(4), 3),
    "_cdist_forward": lambda d: run(aten._cdist_forward.default, d(3, 3), d(3, 3), 3.0, None),
    "amax": lambda d: run(aten.amax.default, d(4)),
    "amin": lambda d: run(aten.amin.default, d(4)),
    "max": lambda d: run(aten.max.default, d(4)),
    "min": lambda d: run(aten.min.default, d(4)),
    "median": lambda d: run(aten.median.default, d(4)),
    "nanmedian": lambda d: run(aten.nanmedian.default, d(4)),
    "aminmax": lambda d: run(aten.aminmax.default, d(4)),
    "max.dim": lambda d: run(aten.max.dim, d(4), 0),
    "min.dim": lambda d: run(aten.min.dim, d(4), 0),
    "median.dim": lambda d: run(aten.median.dim, d(4), 0),
    "nanmedian.dim": lambda d: run(aten.nanmedian.dim, d(4), 0),
    "kthvalue": lambda d: run(aten.kthvalue.default, d(4), 2),
    "mode": lambda d: run(aten.mode.default, d(4)),
    "topk": lambda d: run(aten.topk.default, d(4), 2),
    "sort": lambda d: run(aten.sort.default, d(4)),
    # Linear algebra.
    "mv": lambda d: run(aten.mv.default, d(3, 3), d(3)),
    "dot": lambda d: run(aten.dot.default, d(3), d(3)),
    "vdot": lambda d: run(aten.vdot.default, d(3), d(3)),
    "addmv": lambda d: run(aten.addmv.default, d(3), d(3, 3), d(3), beta=0.5, alpha=0.7),
    "addr": lambda d: run(aten.addr.default, d(3, 3), d(3), d(3), beta=0.5, alpha=0.7),
    "baddbmm": lambda d: run(aten.baddbmm.default, d(2, 2, 2), d(2, 2, 2), d(2, 2, 2), beta=0.5, alpha=0.7),
    "addbmm": lambda d: run(aten.addbmm.default, d(2, 2), d(2, 2, 2), d(2, 2, 2), beta=0.5, alpha=0.7),
    "trace": lambda d: run(aten.trace.default, d(3, 3)),
    "tril": lambda d: run(aten.tril.default, d(3, 3), 1),
    "triu": lambda d: run(aten.triu.default, d(3, 3), 1),
    "linalg_cross": lambda d: run(aten.linalg_cross.default, d(3), d(3)),
    "linalg_inv_ex": lambda d: run(aten.linalg_inv_ex.default, d.regular(3)),
    "_linalg_det": lambda d: run(aten._linalg_det.default, d.regular(3)),
    "_linalg_slogdet": lambda d: run(aten._linalg_slogdet.default, d.regular(3)),
    "_linalg_solve_ex": lambda d: run(aten._linalg_solve_ex.default, d.regular(3), d(3, 3)),
    "linalg_solve_triangular": lambda d: run(aten.linalg_solve_triangular.default, d.regular(3), d(3, 3), upper=True),
    # Indexing.
    "gather": lambda d: run(aten.gather.default, d(3, 3), 1, d.index(3, 3, 3)),
    "index_select": lambda d: run(aten.index_select.default, d(3, 3), 0, d.index(3, 4)),
    "index": lambda d: run(aten.index.Tensor, d(3, 3), [d.index(3, 4)]),
    "_unsafe_index": lambda d: run(aten._unsafe_index.Tensor, d(3, 3), [d.index(3, 4)]),
    "take": lambda d: run(aten.take.default, d(4), d.index(4, 5)),
    "masked_select": lambda d: run(aten.masked_select.default, d(6), d.mask(6)),
    "scatter": lambda d: run(aten.scatter.src, d(3, 3), 1, torch.tensor([[2, 0], [0, 1], [1, 2]]), d(3, 2)),
    "scatter_add": lambda d: run(aten.scatter_add.default, d(3, 3), 1, d.index(3, 3, 3), d(3, 3)),
    "index_add": lambda d: run(aten.index_add.default, d(3, 3), 0, d.index(3, 3), d(3, 3), alpha=0.7),
    "index_copy": lambda d: run(aten.index_copy.default, d(3, 3), 0, d.order(3)[:2], d(2, 3)),
    "index_fill": lambda d: run(aten.index_fill.int_Tensor, d(3, 3), 0, d.order(3)[:2], d()),
    "index_put": lambda d: run(aten.index_put.default, d(3, 3), [d.order(3)[:2]], d(2, 3)),
    "_index_put_impl": lambda d: run(aten._index_put_impl.default, d(3, 3), [d.order(3)[:2]], d(2, 3)),
    "_unsafe_index_put": lambda d: run(aten._unsafe_index_put.default, d(3, 3), [d.order(3)[:2]], d(2, 3)),
    "put": lambda d: run(aten.put.default, d(4), d.order(4)[:2], d(2)),
    "masked_scatter": lambda d: run(aten.masked_scatter.default, d(6), d.mask(6), d(6)),
    "slice_scatter": lambda d: run(aten.slice_scatter.default, d(5), d(3), 0, 1, 4),
    "select_scatter": lambda d: run(aten.select_scatter.default, d(3, 3), d(3), 0, 1),
    "diagonal_scatter": lambda d: run(aten.diagonal_scatter.default, d(3, 3), d(3)),
    "stack": lambda d: run(aten.stack.default, [d(3), d(3), d(3)]),
    "flip": lambda d: run(aten.flip.default, d(4), [0]),
    "roll": lambda d: run(aten.roll.default, d(4), [1]),
    "rot90": lambda d: run(aten.rot90.default, d(3, 3)),
    "repeat": lambda d: run(aten.repeat.default, d(3), [2]),
    "diag_embed": lambda d: run(aten.diag_embed.default, d(3)),
    "block_diag": lambda d: run(aten.block_diag.default, [d(2, 2), d(2, 2)]),
    "constant_pad_nd": lambda d: run(aten.constant_pad_nd.default, d(3), [1, 2], 0.5),
    "reflection_pad1d": lambda d: run(aten.reflection_pad1d.default, d(1, 4), [2, 1]),
    "reflection_pad2d": lambda d: run(aten.reflection_pad2d.default, d(1, 3, 3), [1, 1, 1, 1]),
    "reflection_pad3d": lambda d: run(aten.reflection_pad3d.default, d(1, 2, 2, 2), [1, 0, 0, 1, 1, 0]),
    "replication_pad1d": lambda d: run(aten.replication_pad1d.default, d(1, 3), [2, 1]),
    "replication_pad2d": lambda d: run(aten.replication_pad2d.default, d(1, 2, 2), [1, 0, 0, 1]),
    "replication_pad3d": lambda d: run(aten.replication_pad3d.default, d(1, 2, 2, 2), [1, 0, 0, 1, 1, 0]),
    "pixel_shuffle": lambda d: run(aten.pixel_shuffle.default, d(4, 2, 2), 2),
    "pixel_unshuffle": lambda d: run(aten.pixel_unshuffle.default, d(1, 4, 4), 2),
    "channel_shuffle": lambda d: run(aten.channel_shuffle.default, d(1, 6, 1, 2), 3),
    "native_channel_shuffle": lambda d: run(aten.native_channel_shuffle.default, d(1, 6, 1, 2), 3),
    "im2col": lambda d: run(aten.im2col.default, d(1, 1, 3, 4), [2, 2], [1, 1], [0, 0], [1, 1]),
    "col2im": lambda d: run(aten.col2im.default, d(1, 4, 6), [3, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
    # Losses.
    "mse_loss": lambda d: run(aten.mse_loss.default, d(4), d(4)),
    "smooth_l1_loss": lambda d: run(aten.smooth_l1_loss.default, d(4), d(4), 1, 0.7),
    "huber_loss": lambda d: run(aten.huber_loss.default, d(4), d(4), 1, 0.7),
    "binary_cross_entropy": lambda d: run(
        aten.binary_cross_entropy.default, d.between(0.1, 0.9, 4), d.between(0, 1, 4)
    ),
    "binary_cross_entropy_with_logits": lambda d: run(
        aten.binary_cross_entropy_with_logits.default, d(4), d.between(0, 1, 4)
    ),
    "soft_margin_loss": lambda d: run(aten.soft_margin_loss.default, d(4), torch.tensor([1, -1, -1, 1])),
    "nll_loss2d_forward": lambda d: run(
        aten.nll_loss2d_forward.default, d(1, 3, 2, 2), torch.tensor([[[0, 2], [-100, 1]]]), None, 1, -100
    ),
    "multi_margin_loss": lambda d: run(aten.multi_margin_loss.default, d(1, 4), torch.tensor([2])),
    # Normalisation.
    "native_batch_norm": lambda d: run(aten.native_batch_norm.default, d(3, 3), d(3), d(3), None, None, True, 0.1, 0.1),
    "_native_batch_norm_legit": lambda d: run(
        aten._native_batch_norm_legit.no_stats, d(3, 3), d(3), d(3), True, 0.1, 0.1
    ),
    "_batch_norm_with_update": lambda d: run(
        aten._batch_norm_with_update.default,
        *(d(3, 3), d(3), d(3), torch.zeros(3).double(), torch.ones(3).double(), 0.1, 0.1),
    ),
    "native_group_norm": lambda d: run(aten.native_group_norm.default, d(1, 2, 3), d(2), d(2), 1, 2, 3, 1, 0.1),
    # Convolution, pooling, resizing.
    "convolution": lambda d: run(aten.convolution.default, d(1, 2, 5), d(2, 2, 3), d(2), [2], [1], [1], False, [0], 1),
    "_convolution": lambda d: run(
        aten._convolution.default,
        *(d(1, 2, 5), d(2, 2, 3), d(2), [2], [1], [1], False, [0], 1, False, False, False, False),
    ),
    "avg_pool2d": lambda d: run(aten.avg_pool2d.default, d(1, 1, 4, 4), [2, 2], [1, 2], [1, 0]),
    "avg_pool3d": lambda d: run(aten.avg_pool3d.default, d(1, 1, 1, 4, 4), [1, 2, 2], [1, 1, 2], [0, 1, 0]),
    "_adaptive_avg_pool2d": lambda d: run(aten._adaptive_avg_pool2d.default, d(1, 1, 4, 4), [3, 3]),
    "_adaptive_avg_pool3d": lambda d: run(aten._adaptive_avg_pool3d.default, d(1, 1, 3, 2, 2), [2, 2, 2]),
    "adaptive_avg_pool1d": lambda d: run(aten.adaptive_avg_pool1d.default, d(1, 1, 5), [3]),
    "max_pool2d_with_indices": lambda d: run(
        aten.max_pool2d_with_indices.default, d(1, 1, 4, 4), [2, 2], [1, 2], [1, 0]
    ),
    "adaptive_max_pool2d": lambda d: run(aten.adaptive_max_pool2d.default, d(1, 1, 4, 4), [3, 3]),
    "max_pool3d_with_indices": lambda d: run(
        aten.max_pool3d_with_indices.default, d(1, 1, 2, 3, 3), [2, 2, 2], [1, 1, 1]
    ),
    "adaptive_max_pool3d": lambda d: run(aten.adaptive_max_pool3d.default, d(1, 1, 3, 2, 2), [2, 2, 2]),
    "max_unpool2d": lambda d: run(
        aten.max_unpool2d.default, d(1, 1, 2, 2), torch.tensor([[[[0, 3], [9, 14]]]]), [4, 4]
    ),
    "max_unpool3d": lambda d: run(
        aten.max_unpool3d.default,
        d(1, 1, 1, 2, 2),
        torch.tensor([[[[[0, 3], [9, 14]]]]]),
        [2, 4, 4],
        [2, 2, 2],
        [0, 0, 0],
    ),
    "upsample_nearest1d": lambda d: run(aten.upsample_nearest1d.default, d(1, 1, 3), [5]),
    "upsample_nearest2d": lambda d: run(aten.upsample_nearest2d.default, d(1, 1, 2, 3), [4, 5]),
    "upsample_nearest3d": lambda d: run(aten.upsample_nearest3d.default, d(1, 1, 2, 2, 2), [3, 2, 4]),
    "_upsample_nearest_exact1d": lambda d: run(aten._upsample_nearest_exact1d.default, d(1, 1, 3), [5]),
    "_upsample_nearest_exact2d": lambda d: run(aten._upsample_nearest_exact2d.default, d(1, 1, 2, 3), [4, 5]),
    "_upsample_nearest_exact3d": lambda d: run(aten._upsample_nearest_exact3d.default, d(1, 1, 2, 2, 2), [3, 2, 4]),
    "upsample_linear1d": lambda d: run(aten.upsample_linear1d.default, d(1, 1, 3), [5], False),
    "upsample_bilinear2d": lambda d: run(aten.upsample_bilinear2d.default, d(1, 1, 3, 3), [4, 5], False),
    "upsample_trilinear3d": lambda d: run(aten.upsample_trilinear3d.default, d(1, 1, 2, 2, 2), [3, 3, 3], False),
    # Views.
    "clone": unary(aten.clone.default),
    "_to_copy": unary(aten._to_copy.default),
    "alias": unary(aten.alias.default),
    "copy": binary(aten.copy.default),
    "fill": lambda d: run(aten.fill.Tensor, d(2, 2), d()),
    "view": lambda d: run(aten.view.default, d(6), [2, 3]),
    "expand": lambda d: run(aten.expand.default, d(3), [2, 3]),
    "t": lambda d: run(aten.t.default, d(3, 3)),
    "transpose": lambda d: run(aten.transpose.int, d(3, 3), 0, 1),
    "permute": lambda d: run(aten.permute.default, d(2, 3, 2), [2, 1, 0]),
    "select": lambda d: run(aten.select.int, d(3, 3), 0, 1),
    "slice": lambda d: run(aten.slice.Tensor, d(6), 0, 1, 6, 2),
    "split": lambda d: run(aten.split.Tensor, d(5), 3),
    "unbind": lambda d: run(aten.unbind.int, d(2, 3)),
    "diagonal": lambda d: run(aten.diagonal.default, d(3, 3)),
    "narrow": lambda d: run(aten.narrow.default, d(5), 0, 1, 3),
    "unfold": lambda d: run(aten.unfold.default, d(7), 0, 3, 2),
    "as_strided": lambda d: run(aten.as_strided.default, d(7), [2, 3], [2, 1], 1),
    # Flat.
    "round": unary(aten.round.default),
    "sign": unary(aten.sign.default),
    "detach": unary(aten.detach.default),
    "zeros_like": unary(aten.zeros_like.default),
    "gt": binary(aten.gt.Tensor),
    "argmax": unary(aten.argmax.default),
}


def attention(d: Draw, heads: int, groups: int, **options: Any) -> Call:
    q, k, v = d(2, heads, 3, 2), d(2, groups, 4, 2), d(2, groups, 4, 2)
    return run(aten._scaled_dot_product_flash_attention_for_cpu.default, q, k, v, **options)


# The same operations in other shapes and with other options: for everything but the formulas.
VARIANTS: dict[str, Callable[[Draw], Call]] = {
    "add, broadcast": lambda d: run(aten.add.Tensor, d(2, 1, 3), d(4, 1)),
    "add_, in place": lambda d: run(aten.add_.Tensor, d(2, 3), d(3)),
    "mul, by a number": lambda d: run(aten.mul.Tensor, d(2, 3), 0.7),
    "div, by a 0-D tensor": lambda d: run(aten.div.Tensor, d(2, 3), d.between(0.5, 2)),
    "pow, of a number": lambda d: run(aten.pow.Scalar, 1.7, d(3)),
    "pow, to a number": lambda d: run(aten.pow.Tensor_Scalar, d(3), 3),
    "gelu, exact": unary(aten.gelu.default),
    "where, broadcast": lambda d: run(aten.where.self, d.mask(3, 2), d(2), d()),
    "cat, of three, by columns": lambda d: run(aten.cat.default, [d(2, 1), d(2, 3), d(2, 2)], 1),
    "sum, over a dimension": lambda d: run(aten.sum.dim_IntList, d(2, 3, 2), [1]),
    "sum, over two, kept": lambda d: run(aten.sum.dim_IntList, d(2, 3, 2), [0, -1], True),
    "mean, over a dimension": lambda d: run(aten.mean.dim, d(2, 3, 2), [-1], True),
    "addmm, bias broadcast": lambda d: run(aten.addmm.default, d(4), d(2, 3), d(3, 4)),
    "embedding, of a batch": lambda d: run(aten.embedding.default, d(4, 2), d.index(4, 2, 3)),
    "native_layer_norm, of a matrix": lambda d: run(
        aten.native_layer_norm.default, d(2, 2, 3), [2, 3], d(2, 3), d(2, 3), 0.1
    ),
    "native_layer_norm, bare": lambda d: run(aten.native_layer_norm.default, d(2, 3), [3], None, None, 0.1),
    "_softmax, of columns": lambda d: run(aten._softmax.default, d(3, 2), 0, False),
    "nll_loss_forward, summed": lambda d: run(
        aten.nll_loss_forward.default, d(3, 3), torch.tensor([1, -100, 0]), d.between(0.5, 1, 3), 2, -100
    ),
    "attention, causal": lambda d: attention(d, 2, 2, is_causal=True),
    "attention, masked": lambda d: attention(d, 2, 2, attn_mask=torch.ones(3, 4, dtype=torch.float64).tril(1).log()),
    "_fused_rms_norm, of rows": lambda d: run(aten._fused_rms_norm.default, d(2, 3), [3], d(3), 0.1),
    "glu, of columns": lambda d: run(aten.glu.default, d(2, 4), -1),
    "prod, over a dimension": lambda d: run(aten.prod.dim_int, d(2, 3), 1, True),
    "cumprod, of columns": lambda d: run(aten.cumprod.default, d(3, 2), 0),
    "std, over a dimension": lambda d: run(aten.std.correction, d(2, 3), [1], correction=0.5),
    "linalg_vector_norm, Euclid, of rows": lambda d: run(aten.linalg_vector_norm.default, d(2, 3), 2, [1], True),
    "linalg_vector_norm, largest": lambda d: run(aten.linalg_vector_norm.default, d(4), float("inf")),
    "amax, of rows": lambda d: run(aten.amax.default, d(2, 3), [1]),
    "max.dim, of columns": lambda d: run(aten.max.dim, d(3, 2), 0, True),
    "mv, oblong": lambda d: run(aten.mv.default, d(2, 3), d(3)),
    "linalg_cross, of rows": lambda d: run(aten.linalg_cross.default, d(2, 3), d(1, 3)),
    "_linalg_solve_ex, from the right": lambda d: run(aten._linalg_solve_ex.default, d.regular(3), d(2, 3), left=False),
    "_linalg_solve_ex, a vector": lambda d: run(aten._linalg_solve_ex.default, d.regular(3), d(3)),
    "linalg_solve_triangular, lower, from the right": lambda d: run(
        aten.linalg_solve_triangular.default, d.regular(3), d(2, 3), upper=False, left=False
    ),
    "linalg_solve_triangular, unit": lambda d: run(
        aten.linalg_solve_triangular.default, d.regular(3), d(3, 2), upper=False, unitriangular=True
    ),
    "index, by two": lambda d: run(aten.index.Tensor, d(2, 3, 2), [None, d.index(3, 2, 1), d.index(2, 2)]),
    "index_put, added": lambda d: run(aten.index_put.default, d(3), [d.index(3, 4)], d(4), True),
    "constant_pad_nd, cut": lambda d: run(aten.constant_pad_nd.default, d(3, 3), [-1, 1, 1, 0], 0.5),
    "mse_loss, each": lambda d: run(aten.mse_loss.default, d(2, 2), d(2, 2), 0),
    "binary_cross_entropy_with_logits, weighted": lambda d: run(
        aten.binary_cross_entropy_with_logits.default,
        *(d(2, 2), d.between(0, 1, 2, 2), torch.tensor([0.5, 2.0]).double(), torch.tensor([1.5, 0.7]).double(), 2),
    ),
    "multi_margin_loss, squared": lambda d: run(
        aten.multi_margin_loss.default, d(2, 3), torch.tensor([2, 0]), 2, 0.8, torch.tensor([0.5, 1, 2]).double(), 0
    ),
    "native_group_norm, two groups": lambda d: run(
        aten.native_group_norm.default, d(2, 4, 2), d(4), d(4), 2, 4, 2, 2, 0.1
    ),
    "native_batch_norm, fixed": lambda d: run(
        aten.native_batch_norm.default,
        *(
            d(2, 2, 2),
            d(2),
            d(2),
            torch.tensor([0.1, 0.2]).double(),
            torch.tensor([1.0, 2.0]).double(),
            False,
            0.1,
            0.1,
        ),
    ),
    "convolution, two dimensions in groups": lambda d: run(
        aten.convolution.default, d(1, 2, 3, 3), d(2, 1, 2, 2), None, [2, 1], [1, 0], [1, 2], False, [0, 0], 2
    ),
    "convolution, transposed in groups": lambda d: run(
        aten.convolution.default, d(1, 4, 3), d(4, 1, 2), d(2), [2], [1], [1], True, [1], 2
    ),
    "max_pool2d_with_indices, spread": lambda d: run(
        aten.max_pool2d_with_indices.default, d(1, 4, 3), [2, 2], [1, 1], [0, 1], [2, 1], True
    ),
    "avg_pool2d, of what is there": lambda d: run(
        aten.avg_pool2d.default, d(1, 3, 3), [2, 2], [2, 1], [1, 1], True, False
    ),
    "upsample_bilinear2d, by the corners": lambda d: run(aten.upsample_bilinear2d.default, d(1, 1, 2, 3), [3, 4], True),
    "select, in the middle": lambda d: run(aten.select.int, d(2, 3, 2), 1, -1),
    "split, of columns": lambda d: run(aten.split.Tensor, d(2, 5), 2, 1),
    "copy_, broadcast": lambda d: run(aten.copy_.default, d(2, 3), d(3)),
}
