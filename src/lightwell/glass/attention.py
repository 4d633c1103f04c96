"""What a fused attention kernel does not show: its scores and probabilities, computed again from its inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightwell.errors import TraceError
from lightwell.glass.call import RECOMPUTE, Call


def attention_scores(
    q: Tensor, k: Tensor, is_causal: bool, mask: Tensor | None, scale: float, dropout_p: float = 0.0
) -> Tensor:
    """Scaled, masked scores (..., T, S) of queries (..., T, D) and keys (..., S, D); what may not be seen is -inf.

    Raises TraceError if the kernel dropped probabilities at random: it keeps no mask that could be used again.
    """
    if dropout_p > 0:
        raise TraceError(
            f"expected attention without dropout inside of the kernel, got dropout_p={dropout_p}.",
            "Trace with open_attention=True, which runs attention in parts, or with dropout off.",
        )
    scores = q @ k.mT * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).tril().logical_not(), -math.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def attention_formula(bias: str = "") -> str:
    """The local derivatives of attention, for one batch and head, in the language of `glass.formula`.

    p_ij is exp(s_ij - z1_i): the kernels' second output z1 holds the logsumexp of each row of scores.
    """

    def p(j: str) -> str:
        return f"exp(scale * sum[f](q[i,f] * k[{j},f])" + (f" + {bias}[i,{j}]" if bias else "") + " - z1[i])"

    formula = (
        f"dz[i,d]/dv[j,e] = [d=e] * {p('j')};"
        f" dz[i,d]/dk[j,e] = scale * q[i,e] * {p('j')} * (v[j,d] - z[i,d]);"
        f" dz[i,d]/dq[j,e] = [i=j] * scale * sum[m]({p('m')} * (v[m,d] - z[i,d]) * k[m,e])"
    )
    return formula + (f"; dz[i,d]/d{bias}[n,j] = [i=n] * {p('j')} * (v[j,d] - z[i,d])" if bias else "")


def attention_probabilities(call: Call) -> Tensor:
    """The probabilities (B, H, T, S) inside a fused attention call; a row that may see nothing is all 0."""
    return _scores(call).softmax(-1).nan_to_num(0.0)


def _scores(call: Call) -> Tensor:
    named = call.named()
    q, k = named["query"], named["key"]
    scale = 1 / math.sqrt(q.shape[-1]) if named.get("scale") is None else named["scale"]
    mask = named.get("attn_mask") if named.get("attn_mask") is not None else named.get("attn_bias")
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return attention_scores(q, k, named["is_causal"], mask, scale, named.get("dropout_p", 0.0))


def _in_parts(call: Call, captured: Call) -> tuple[Tensor, ...]:
    v: Any = call.named()["value"]
    v = v.repeat_interleave(call.named()["query"].shape[1] // v.shape[1], dim=1)
    scores = _scores(call)
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1), *call.outputs[2:]


# Kernels of accelerators know no float64; their replay is the plain computation.
for _name in (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
):
    RECOMPUTE[_name] = _in_parts
