"""Both families once more, as the formulas stand in the papers: the slow twin that the fast models are tested against.

One sequence at a time, one head at a time, one function for each formula, and nothing hidden: the softmax, the norms,
the rotation and the loss are written out. Give it weights in float64 and read it beside gpt2.py and modern.py; every
gradient of theirs must be the one that autograd finds here. Nothing else in Lightwell runs it: it is slow.

    T  time: tokens in the sequence    C  emb_dim: numbers per token    D  head_dim    V  vocab_size

A vector is a row. Weight matrices are (out, in), as torch keeps them, so a layer is `x W^T`.
Sources: Radford et al. 2019 (GPT-2); Yang et al. 2025 (Qwen3), and those named at each formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig

Weights = dict[str, Tensor]


def forward(
    config: ModelConfig,
    weights: Weights,
    ids: Tensor,
    targets: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ids` (B, T) to logits (B, T, V); with `targets` (B, T), to (sum of the losses, number of targets that count).

    weights: by the names of the models' state dicts. documents: as in `gpt2.GPT2.forward`. No dropout: what the models
    compute after `.eval()`, or with drop_rate 0.
    """
    sequences = []
    for b, row in enumerate(ids):
        may_see = visible(row.shape[0], None if documents is None else documents[b])
        if isinstance(config, GPTConfig):
            sequences.append(gpt2(config, weights, row, may_see))
        else:
            sequences.append(modern(config, weights, row, may_see))
    logits = torch.stack(sequences)
    return logits if targets is None else cross_entropy(logits, targets)


# --- the two families -------------------------------------------------------------------------------------------------


def gpt2(config: GPTConfig, weights: Weights, ids: Tensor, may_see: Tensor) -> Tensor:
    """Logits (T, V) of one sequence (T,)."""
    x = weights["tok_emb.weight"][ids] + weights["pos_emb.weight"][: ids.shape[0]]  # (T, C)
    for layer in range(config.n_layers):
        w = inside(weights, f"blocks.{layer}.")

        h = layer_norm(x, w["norm1.weight"], w["norm1.bias"])
        q, k, v = linear(h, w["attn.qkv.weight"], w.get("attn.qkv.bias")).split(config.emb_dim, dim=1)  # (T, C) each
        D = config.head_dim
        heads = [
            attention(q[:, n * D : (n + 1) * D], k[:, n * D : (n + 1) * D], v[:, n * D : (n + 1) * D], may_see)
            for n in range(config.n_heads)
        ]
        x = x + linear(torch.cat(heads, dim=1), w["attn.out.weight"], w["attn.out.bias"])

        h = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
        h = gelu(linear(h, w["mlp.up.weight"], w["mlp.up.bias"]))
        x = x + linear(h, w["mlp.down.weight"], w["mlp.down.bias"])

    x = layer_norm(x, weights["final_norm.weight"], weights["final_norm.bias"])
    return linear(x, head(config, weights))


def modern(config: ModernConfig, weights: Weights, ids: Tensor, may_see: Tensor) -> Tensor:
    """Logits (T, V) of one sequence (T,)."""
    H, G, D, eps = config.n_heads, config.kv_heads, config.size_per_head, config.norm_eps
    x = weights["tok_emb.weight"][ids]  # (T, C)
    for layer in range(config.n_layers):
        w = inside(weights, f"blocks.{layer}.")

        h = rms_norm(x, w["norm1.weight"], eps)
        W_q, W_k, W_v = w["attn.qkv.weight"].split([H * D, G * D, G * D])
        heads = []
        for n in range(H):
            shared = n // (H // G)  # H / G neighbouring heads of queries share one of keys and values
            q = linear(h, W_q[n * D : (n + 1) * D])  # (T, D)
            k = linear(h, W_k[shared * D : (shared + 1) * D])
            v = linear(h, W_v[shared * D : (shared + 1) * D])
            q = rope(rms_norm(q, w["attn.q_norm.weight"], eps), config.rope_theta)
            k = rope(rms_norm(k, w["attn.k_norm.weight"], eps), config.rope_theta)
            heads.append(attention(q, k, v, may_see))
        x = x + linear(torch.cat(heads, dim=1), w["attn.out.weight"])

        h = rms_norm(x, w["norm2.weight"], eps)
        h = silu(linear(h, w["mlp.gate.weight"])) * linear(h, w["mlp.up.weight"])
        x = x + linear(h, w["mlp.down.weight"])

    x = rms_norm(x, weights["final_norm.weight"], eps)
    return linear(x, head(config, weights))


def inside(weights: Weights, prefix: str) -> Weights:
    """The weights whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def head(config: ModelConfig, weights: Weights) -> Tensor:
    """The last matrix (V, C): with tied embeddings, the first one again."""
    return weights["tok_emb.weight"] if config.tie_embeddings else weights["head.weight"]


# --- the formulas -----------------------------------------------------------------------------------------------------


def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    return x @ W.T if b is None else x @ W.T + b


def softmax(x: Tensor) -> Tensor:
    """e^x_i / sum of e^x_j, over the last dimension. Subtracting the largest changes nothing but keeps e^x finite."""
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


def visible(T: int, documents: Tensor | None = None) -> Tensor:
    """(T, T): may the token of this row see the token of this column? Itself and earlier ones, of its own document."""
    rows = []
    for t in range(T):
        rows.append([s <= t and (documents is None or bool(documents[s] == documents[t])) for s in range(T)])
    return torch.tensor(rows)


def attention(q: Tensor, k: Tensor, v: Tensor, may_see: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for one head, each (T, D). Vaswani et al. 2017, equation 1."""
    scores = q @ k.T / math.sqrt(q.shape[1])  # (T, T)
    scores = torch.where(may_see, scores, -math.inf)  # e^-inf = 0: no weight
    return softmax(scores) @ v


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) * gain + bias, for each row. Ba et al. 2016."""
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain + bias


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain, for each row. Zhang and Sennrich 2019."""
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps) * gain


def rope(x: Tensor, theta: float) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) of the row at position t by t / theta^(2i/D) radians. Su et al. 2021."""
    T, D = x.shape
    t = torch.arange(T, dtype=x.dtype)
    first, second = [], []
    for i in range(D // 2):
        angle = t / theta ** (2 * i / D)  # (T,)
        a, b = x[:, i], x[:, i + D // 2]
        first.append(a * torch.cos(angle) - b * torch.sin(angle))
        second.append(a * torch.sin(angle) + b * torch.cos(angle))
    return torch.stack(first + second, dim=1)


def gelu(x: Tensor) -> Tensor:
    """GELU as GPT-2 has it: x times almost the normal distribution function. Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x). Elfwing et al. 2018."""
    return x / (1 + torch.exp(-x))


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(logits)[target], in nats, over the targets that are not -100; and how many those are."""
    losses = []
    for row, target in zip(logits.flatten(0, 1), targets.flatten().tolist()):
        if target != -100:
            losses.append(-torch.log(softmax(row)[target]))
    total = torch.stack(losses).sum() if losses else logits.sum() * 0
    return total, torch.tensor(len(losses))
