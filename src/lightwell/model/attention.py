"""What a token may look at, and the looking: masks, positions and the attention product of both families.

Letters as in gpt2.py. Torch's fused kernels never store the (T, T) scores: memory grows with T, not T^2
(FlashAttention, Dao et al. 2022). `reference.py` has the same product written out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightwell.model.cache import KVCache
from lightwell.model.kernels import fused

NARROW = 128  # tokens up to which a CPU's fused kernel is faster in float32 than in bfloat16


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop_rate: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: `q` (B, H, T, D), `k` and `v` (B, G, S, D), to (B, H, T, D).

    mask: bool, broadcast to (B, H, T, S), True where the query may look; None: itself and everything before it.
    drop_rate: share of the attention weights set to zero, as GPT-2 does in training. On CPUs this leaves the fused
        kernel, and the (B, H, T, T) weights and the mask of what was dropped are stored.
    """
    if mask is None and not drop_rate and fused.usable(q, k, v) and fused.attends(q):
        return fused.attend(q, k, v)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not drop_rate and k.shape[2] <= NARROW:
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), mask, drop_rate).to(torch.get_autocast_dtype("cpu"))
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=drop_rate,
        is_causal=mask is None and q.shape[2] > 1,  # a single newest token sees everything
        enable_gqa=k.shape[1] != q.shape[1],
    )


def token_positions(ids: Tensor, cache: KVCache | None) -> Tensor:
    """The position of each token of `ids` (B, T) in its sequence: (1, T), or (B, T) if the rows begin apart."""
    seen = cache.length if cache is not None else 0
    slots = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]
    if cache is None or cache.start is None:
        return slots
    return (slots - cache.start[:, None]).clamp(min=0)  # padding before the start: any position will do


def visible_tokens(ids: Tensor, cache: KVCache | None, documents: Tensor | None) -> Tensor | None:
    """The mask for `attend`: (T, S) or (B, 1, T, S), or None where plain causal attention is all that is asked."""
    T = ids.shape[1]
    if documents is not None:
        same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
        return same.tril()[:, None]
    if cache is None or (cache.start is None and (cache.length == 0 or T == 1)):
        return None
    query = torch.arange(cache.length, cache.length + T, device=ids.device)[:, None]  # (T, 1)
    key = torch.arange(cache.length + T, device=ids.device)  # (S,)
    if cache.start is None:
        return key <= query
    begun = key >= cache.start[:, None, None]  # (B, 1, S)
    # Padding may look at itself: a row of scores that is masked everywhere has no softmax.
    return ((key <= query) & (begun | (key == query)))[:, None]
