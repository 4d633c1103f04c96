"""GPT-2, whole: from token ids to logits, or to the loss.

    B  batch: sequences side by side          H  n_heads: attention heads
    T  time: tokens in the sequence           D  head_dim: numbers per head, C / H
    C  emb_dim: numbers per token             V  vocab_size: different tokens
    S  tokens seen so far: T, plus those in the cache

A token's number picks a row of C numbers, its position another; their sum is the *residual stream*. Each block reads
it, normalised, and adds to it twice: attention brings in what earlier tokens hold, the MLP works on each token alone.
At the end one product with V rows asks, for each token of the vocabulary, how well it would follow.

`reference.py` is the same computation written out slowly; `modern.py` is the other family.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and the weights OpenAI published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightwell.config.gpt import GPTConfig
from lightwell.model.attention import attend, token_positions, visible_tokens
from lightwell.model.blocks import run_block
from lightwell.model.cache import KVCache, LayerCache
from lightwell.model.checks import check_inputs, known_vocab_size
from lightwell.model.init import Embedding, Linear, initialise
from lightwell.model.kernels import fused
from lightwell.model.loss import cross_entropy_sum
from lightwell.model.tying import tie_head


class Attention(nn.Module):
    """Causal self-attention: each token asks (query), is asked (key) and answers (value), in H heads at once."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.emb_dim
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.qkv = Linear(C, 3 * C, bias=config.qkv_bias)  # queries, keys and values in one product
        self.out = Linear(C, C)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        B, T, C = x.shape
        H, D = self.n_heads, C // self.n_heads
        q, k, v = self.qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # three of (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, S, D)
        y = attend(q, k, v, mask, self.drop_rate if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.drop(self.out(y))


class MLP(nn.Module):
    """Two layers with GELU between, on each token alone. GPT-2's GELU is the tanh form (Hendrycks and Gimpel 2016)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.emb_dim, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.emb_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)  # (B, T, hidden_dim)
        x = fused.gelu(x) if fused.usable(x) else F.gelu(x, approximate="tanh")
        return self.drop(self.down(x))  # (B, T, C)


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the residual stream it reads through a LayerNorm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim, eps=1e-5)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.emb_dim, eps=1e-5)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))


class GPT2(nn.Module):
    """GPT-2 of the sizes in `config`, in float32 on the CPU, its numbers drawn from `generator` (see init.py).

    `checkpoint_activations` set to True keeps only each block's input and computes the rest again in the backward
    pass: less memory, one more forward pass of time, the same gradients. `plain_loss` set to True always takes the
    textbook loss (see loss.py). Raises UserError if `config.vocab_size` is None.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        V, C = known_vocab_size(config), config.emb_dim
        self.config = config
        self.checkpoint_activations = False
        self.plain_loss = False
        self.tok_emb = Embedding(V, C)
        self.pos_emb = Embedding(config.context_length, C)
        self.drop = nn.Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(C, eps=1e-5)
        self.head = Linear(C, V, bias=False)
        if config.tie_embeddings:
            tie_head(self)  # head.weight is tok_emb.weight
        initialise(self, generator)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`ids` (B, T) to logits (B, T, V); with `targets` (B, T), to the loss in two parts.

        targets: the token that should follow each token, -100 where none counts. Result then: the sum of the losses
            in nats, float32 or wider, and the number of targets that counted, both 0-D. Their ratio is the mean.
        cache: keys and values of earlier tokens; `ids` are then the new tokens only, and the cache grows by T.
        documents: (B, T); attention stays among tokens of equal number. Positions are still the window's.
        Raises UserError for shapes that do not fit and for more tokens than context_length.
        """
        check_inputs(self.config, ids, targets, cache, documents)
        positions = token_positions(ids, cache)  # (1, T), or (B, T) if the rows begin at different places
        mask = visible_tokens(ids, cache, documents)  # None: every token sees itself and all before it
        x = self.drop(self.tok_emb(ids) + self.pos_emb(positions))  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = run_block(block, x, mask, cache and cache[layer], checkpoint=self.checkpoint_activations)
        x = self.final_norm(x)  # (B, T, C)
        if cache is not None:
            cache.advance(ids.shape[1])
        if targets is None:
            return self.head(x)  # (B, T, V)
        return cross_entropy_sum(x.flatten(0, 1), self.head.weight, targets.flatten(), plain=self.plain_loss)

    @property
    def device(self) -> torch.device:
        return self.tok_emb.weight.device
