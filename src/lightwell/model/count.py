"""What a model costs: parameters, arithmetic, memory. Counted from the config; nothing is built. (Memory also depends
on the number of threads, see `fused.keeps_weights`.)

    N  tokens at once: batch times context      V  vocab_size       H  heads of queries    T  context_length
    C  emb_dim                                  F  hidden_dim       G  heads of keys       D  head_dim

- *Parameters* are exact.
- *FLOPs* count the products that are executed, a multiplication and an addition each: matrix products, and attention's
  with the half that the causal mask leaves. Looking up an embedding is no arithmetic; what is done number by number
  (norms, GELU, softmax) is a few per cent and left out, as everybody does.
- *Memory* follows what the backward pass needs: each operation keeps certain inputs or results. The table of
  `_kept_by_block` lists them, and tests compare it with what autograd keeps and with the peak of real processes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from lightwell.config.gpt import GPTConfig, ModelConfig
from lightwell.model.attention import NARROW
from lightwell.model.checks import known_vocab_size
from lightwell.model.kernels.fused import keeps_weights, kept_weights
from lightwell.model.loss import piece_rows

FLOAT32 = 4  # bytes: weights, gradients, optimizer state, and what must be exact, whatever dtype the products have

# What the C library holds but nobody uses. A step frees hundreds of blocks of many sizes and takes others in their
# places; what does not fit leaves holes. Measured with glibc on x86-64, with its defaults and with freed memory kept,
# on models of 0.9 to 124 million parameters: 0.2 to 0.5 of what comes and goes in a step.
FRAGMENTATION = 0.375 if sys.platform.startswith("linux") else 0.0


@dataclass(frozen=True)
class _Sizes:
    """The letters of a config."""

    V: int
    C: int
    F: int
    H: int
    G: int
    D: int
    L: int
    is_gpt2: bool


def _sizes(config: ModelConfig) -> _Sizes:
    V, C, F, H, L = known_vocab_size(config), config.emb_dim, config.mlp_dim, config.n_heads, config.n_layers
    if isinstance(config, GPTConfig):
        return _Sizes(V, C, F, H, H, config.head_dim, L, is_gpt2=True)
    return _Sizes(V, C, F, H, config.kv_heads, config.size_per_head, L, is_gpt2=False)


# --- parameters -------------------------------------------------------------------------------------------------------


def parameters(config: ModelConfig) -> dict[str, int]:
    """How many numbers are learned, by component, and their "total". A tied head has none of its own."""
    s = _sizes(config)
    norms = 2 * s.C if s.is_gpt2 else s.C  # gain and bias, or gain
    found = {
        "token_embedding": s.V * s.C,
        "position_embedding": config.context_length * s.C if s.is_gpt2 else 0,
        "attention": s.L * (sum(_attention_matrices(s).values()) + _attention_vectors(config, s)),
        "mlp": s.L * (sum(_mlp_matrices(s).values()) + (s.F + s.C if s.is_gpt2 else 0)),
        "norms": (2 * s.L + 1) * norms,
        "head": 0 if config.tie_embeddings else s.V * s.C,
    }
    return {**found, "total": sum(found.values())}


def parameters_of_blocks(config: ModelConfig) -> int:
    """How many of them are in attention and MLPs: what is neither embedding nor head nor norm."""
    found = parameters(config)
    return found["attention"] + found["mlp"]


def qkv_rows(config: ModelConfig) -> list[int]:
    """Rows of queries, keys and values in the one matrix that holds them."""
    if isinstance(config, GPTConfig):
        return [config.emb_dim] * 3
    keys = config.kv_heads * config.size_per_head
    return [config.n_heads * config.size_per_head, keys, keys]


def _attention_matrices(s: _Sizes) -> dict[str, int]:
    return {"qkv": s.C * (s.H + 2 * s.G) * s.D, "out": s.H * s.D * s.C}


def _mlp_matrices(s: _Sizes) -> dict[str, int]:
    found = {"up": s.C * s.F, "down": s.F * s.C}
    return found if s.is_gpt2 else {"gate": s.C * s.F, **found}


def _hidden_matrices(s: _Sizes) -> int:
    """Numbers in the matrices of all blocks."""
    return s.L * (sum(_attention_matrices(s).values()) + sum(_mlp_matrices(s).values()))


def _attention_vectors(config: ModelConfig, s: _Sizes) -> int:
    """Biases, or the gains of QK-norm."""
    if isinstance(config, GPTConfig):
        return s.C + (3 * s.C if config.qkv_bias else 0)
    return 2 * s.D


# --- arithmetic -------------------------------------------------------------------------------------------------------


def flops_per_token(
    config: ModelConfig, context_length: int | None = None, *, checkpoint_activations: bool = False
) -> dict[str, float]:
    """FLOPs of one token of a full window: "forward", "backward" and their "total", a training step's arithmetic.

    A matrix of n numbers costs 2 n forward and 4 n backward, for the gradients of its input and of itself. Attention
    has two products forward (scores, values) and five backward: the scores again, and a gradient for each of the four
    factors. (With dropout on a CPU four: the fused kernel is not used, and the scores are kept.)
    With `checkpoint_activations` the backward pass runs the blocks' forward pass again, up to the last thing that it
    needs: without dropout that is the input of `down`.
    context_length: tokens in the window; the config's if None.
    """
    s = _sizes(config)
    T = context_length or config.context_length
    matrices = _hidden_matrices(s)
    product = s.L * 2 * s.H * s.D * T / 2  # queries by keys; half of them lie in the future
    head = 2 * s.V * s.C
    forward = 2 * matrices + 2 * product + head
    backward = 4 * matrices + 5 * product + 2 * head
    if checkpoint_activations:
        backward += 2 * matrices + 2 * product - (0 if config.drop_rate else s.L * 2 * s.F * s.C)
    return {"forward": forward, "backward": backward, "total": forward + backward}


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_bytes(
    config: ModelConfig,
    batch_size: int,
    *,
    dtype_bytes: int = 4,
    optimizer: str = "adamw",
    dropout: bool | None = None,
    checkpoint_activations: bool = False,
    context_length: int | None = None,
    accumulate: bool = False,
    device: str = "cpu",
    kernels: bool = False,
) -> dict[str, int]:
    """Bytes that training takes, by part, and their peak.

    batch_size: sequences at once in this process (the micro-batch). dtype_bytes: of the products, 2 under autocast to
    bfloat16; weights are float32 in any case. optimizer: "adamw" or "muon" (AdamW for embeddings and vectors). dropout:
    None: if the config's drop_rate is not 0. accumulate: gradients of earlier micro-batches are there when the forward
    pass begins. device: "cpu" or "cuda", whose kernels keep different things. kernels: with our own on a CPU, of which
    attention keeps its weights (that others keep less than PyTorch's is not counted).

    Returns "weights", "gradients", "optimizer", "activations" (kept for the backward pass), "temporaries" (of the worst
    moment), "fragmentation" (held by the C library between blocks in use), "saving_copy" (what is being written to disk
    while training goes on), and "total": the peak. Gradients come as activations go, so it is less than the sum.
    """
    s = _sizes(config)
    T = context_length or config.context_length
    N = batch_size * T
    dropping = config.drop_rate > 0 if dropout is None else dropout
    weights = FLOAT32 * parameters(config)["total"]
    state = _optimizer_state(config, optimizer)
    copies = (_hidden_matrices(s), s.V * s.C) if dtype_bytes < FLOAT32 else (0, 0)  # matrices in the products' dtype
    block = N * _kept_by_block(s, T, dtype_bytes, dropping, device) + dtype_bytes * copies[0] // s.L
    products = torch.bfloat16 if dtype_bytes < FLOAT32 else torch.float32
    ours = kernels and device == "cpu" and not dropping and s.G == s.H
    if ours and keeps_weights(batch_size, s.H, T, products):
        block += batch_size * s.H * kept_weights(T, products)
    stream = N * s.C * FLOAT32  # one residual stream: a block's input, or its gradient
    blocks = s.L * (stream if checkpoint_activations else block)
    around = N * _kept_around_blocks(s, dtype_bytes, dropping, device) + dtype_bytes * copies[1]
    again = block - stream if checkpoint_activations else 0  # the block that is being computed again
    loss_kept, loss_temporaries = _loss(s, N, dtype_bytes, device, kernels)
    head_gradient = FLOAT32 * s.V * s.C
    earlier = weights if accumulate else 0  # gradients that are there already
    # Gradients that come after the first block's MLP: those of its matrices and of the embeddings.
    not_yet = 0 if accumulate else FLOAT32 * (_hidden_matrices(s) // s.L + (0 if config.tie_embeddings else s.V * s.C))
    # The two gradients of a tied matrix meet at the end, in a third; an untied embedding's is its final one.
    tied = 2 * head_gradient if config.tie_embeddings else head_gradient if accumulate else 0
    working = stream + N * _block_temporaries(s, T, dtype_bytes, dropping, device) + again

    peak = max(  # of what comes and goes in a step, at each of its moments
        earlier + blocks + around + loss_kept + loss_temporaries,
        earlier + blocks + head_gradient + working,  # the backward pass of the last block
        weights - not_yet + blocks // s.L + working,  # of the first block
        weights + stream + tied,  # of the embedding
        weights + _update_temporaries(config, optimizer, dtype_bytes),
    )
    activations = blocks + around + loss_kept
    fragmentation = int(FRAGMENTATION * peak) if device == "cpu" else 0
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": state,
        "activations": activations,
        "temporaries": max(0, peak - max(earlier + activations, weights)),
        "fragmentation": fragmentation,
        "saving_copy": weights + state,
        "total": weights + state + peak + fragmentation + (weights + state if device == "cpu" else 0),
    }


def _kept_by_block(s: _Sizes, T: int, dtype_bytes: int, dropping: bool, device: str) -> int:
    """Bytes per token that one block keeps for its backward pass."""
    if s.is_gpt2:
        norms = 2 * (s.C + 2)  # input, mean, deviation
        mlp = s.C + 2 * s.F  # inputs of up, of GELU, of down
    else:
        norms = 2 * (_rms_kept(device) * s.C + 1)
        mlp = s.C + 4 * s.F  # inputs of gate and up, of SiLU, of the product (two), of down
        if dtype_bytes < FLOAT32:
            mlp += s.C  # autocast makes gate and up a copy each
    outer = s.C + s.H * s.D  # inputs of qkv, of out
    masks = 2 * s.C * (dtype_bytes if device == "cpu" else 1) if dropping else 0  # on CPUs a mask is made of numbers
    attention = _kept_by_attention(s, T, dtype_bytes, dropping, device)
    return norms * FLOAT32 + (outer + mlp) * dtype_bytes + masks + attention


def _kept_by_attention(s: _Sizes, T: int, dtype_bytes: int, dropping: bool, device: str) -> int:
    """Bytes per token kept by what happens between qkv and out."""
    q, kv = s.H * s.D, s.G * s.D
    half = dtype_bytes < FLOAT32
    kept = 0
    if not s.is_gpt2:  # QK-norm. In float32 it reads the split of qkv in place, under autocast a wider copy
        kept += FLOAT32 * ((_rms_kept(device) - (0 if half else 1)) * (q + kv) + s.H + s.G)
    if dropping and device == "cpu":
        # Not the fused kernel: scaled copies of queries, keys and values for every head, and for each head and pair of
        # tokens the weight, whether it is dropped, and the product of both; in float32 in any case.
        return kept + FLOAT32 * (3 * q + 3 * s.H * T + (0 if half or s.is_gpt2 else q + 2 * kv))
    kept += FLOAT32 * s.H  # the fused kernel keeps the logarithm of each softmax's denominator
    if half and device == "cpu" and T <= NARROW:  # its inputs and its output, in float32
        return kept + FLOAT32 * (2 * q + 2 * kv)
    return kept + dtype_bytes * (q + 2 * kv + (0 if s.is_gpt2 else q + kv))  # split; rotated queries and keys


def _rms_kept(device: str) -> int:
    """Numbers that an RMSNorm keeps per number: its input; where there is no fused kernel, also the result."""
    return 1 if device == "cuda" else 2


def _kept_around_blocks(s: _Sizes, dtype_bytes: int, dropping: bool, device: str) -> int:
    """Bytes per token kept before the first and after the last block: first dropout, final norm, input of the head."""
    norm = s.C + 2 if s.is_gpt2 else _rms_kept(device) * s.C + 1
    mask = s.C * (FLOAT32 if device == "cpu" else 1) if dropping else 0
    return norm * FLOAT32 + mask + s.C * dtype_bytes


def _loss(s: _Sizes, N: int, dtype_bytes: int, device: str, kernels: bool) -> tuple[int, int]:
    """Bytes that the loss keeps, and those it needs for a moment. See loss.py."""
    rows = min(N, piece_rows(s.V, s.C, device))
    if rows == N and not kernels:
        logits = N * s.V * FLOAT32
        return logits, 2 * logits  # log-softmax; in the backward pass its gradient and that of the logits
    gradients = FLOAT32 * (s.V * s.C + N * s.C)
    piece = rows * s.V * (FLOAT32 + (dtype_bytes if dtype_bytes < FLOAT32 else 0))
    return gradients, max(piece, gradients)  # the backward pass multiplies both by the gradient of the sum


def _block_temporaries(s: _Sizes, T: int, dtype_bytes: int, dropping: bool, device: str) -> int:
    """Bytes per token that one block's backward pass needs at worst, beyond what it has given back by then."""
    inside_mlp = (1 if s.is_gpt2 else 2) * s.F * dtype_bytes  # gradients of F numbers, when the input of down is gone
    if not (dropping and device == "cpu"):
        return inside_mlp
    mlp_gone = (s.C + (2 if s.is_gpt2 else 4) * s.F) * dtype_bytes
    return max(inside_mlp, s.H * T * FLOAT32 - mlp_gone)  # gradient of the attention weights


def _optimizer_state(config: ModelConfig, optimizer: str) -> int:
    """AdamW keeps two numbers per parameter, Muon one per number of a block's matrix."""
    total = parameters(config)["total"]
    muon = _hidden_matrices(_sizes(config)) if optimizer == "muon" else 0
    return FLOAT32 * (2 * (total - muon) + muon)


def _update_temporaries(config: ModelConfig, optimizer: str, dtype_bytes: int) -> int:
    """Bytes of an update in the making. torch's fused AdamW needs none; Muon holds the new momentum of every matrix and
    works on all matrices of one shape together, for which it needs three of them and three of their smaller squares."""
    if optimizer != "muon":
        return 0
    s = _sizes(config)
    count: dict[tuple[int, int], int] = {}  # shape, lying: how many in a block; queries, keys and values are apart
    shapes = [(s.H * s.D, s.C), (s.G * s.D, s.C), (s.G * s.D, s.C), (s.C, s.H * s.D), (s.F, s.C), (s.C, s.F)]
    for rows, columns in shapes if s.is_gpt2 else [*shapes, (s.F, s.C)]:
        shape = min(rows, columns), max(rows, columns)
        count[shape] = count.get(shape, 0) + 1
    groups = [n * (3 * rows * columns + 3 * rows**2) for (rows, columns), n in count.items()]
    return FLOAT32 * _hidden_matrices(s) + dtype_bytes * s.L * max(groups)
