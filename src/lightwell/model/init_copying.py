"""Attention that can copy from the beginning: the heads that a model would have to find by itself.

Most of what a text repeats can be guessed by one rule: look for the last place where the present token stood, and
expect what came after it. Two heads in two layers do that, an *induction head* (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"). Models find it after a million tokens or more, all at once, and it is then much of
what they know of their context (Olsson et al. 2022). Here it is laid out beforehand, and training goes on from there:

    layer 0, head 0   looks at the token before, and notes at each place what stood there
    layer 1, head 0   asks for a place whose note says what the present token is, and brings the token of that place

One more head of layer 0, with other keys, looks back by two; what it brings is left to training.

How a head looks a fixed number of tokens back: embeddings that begin with counted pairs (init_bigram.py) all have one
part in common. If queries and keys read that part alone, all of them are equal, and only RoPE, which turns them by
their positions, tells them apart; with the keys turned ahead by `offset` positions, the product is largest there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightwell.model.init_bigram import normalised
from lightwell.model.modern import Attention, Modern

SHARES = (0.5, 0.3, 0.2)  # of a query that looks back, in the pairs that turn fastest: near places differ most there
SLOW = 0.02  # radians a token: pairs that turn no faster can be compared over the distances that are copied over
NOTED = 3.0  # norm of a note, where an embedding's numbers have a root mean square of 1; about half of it arrives
COPIED = 1.0  # nats by which a token's logit rises where all attention rests on it; training makes more of it (LOG.md)
RIDGE = 0.1  # of the head's mean square


@torch.no_grad()
def initialise_copying(model: Modern, ids: np.ndarray, generator: torch.Generator) -> None:
    """Sets rows of `attn` in the first two blocks in place. Embeddings and head are to have their numbers by now.

    ids: (N,) tokens of the text, which say what is frequent. Leaves a model of one block as it is, and one whose heads
    are wider than the stream or have no pair that turns slowly enough.
    """
    config, embedding = model.config, model.tok_emb.weight.float()
    D, C, scale = config.size_per_head, config.emb_dim, embedding.square().mean().sqrt()
    turns = config.rope_theta ** (-torch.arange(0, D, 2) / D)  # radians a token, of each pair
    slow = (turns <= SLOW).repeat(2).nonzero().flatten()
    if config.n_layers < 2 or D > C or not len(slow):
        return
    share = torch.from_numpy(np.bincount(ids, minlength=len(embedding)) / len(ids)).float()
    tokens = normalised(embedding)  # (V, C), as the first norm makes them
    common = share @ tokens
    always = common / common.square().sum()  # (C,): its product with each token is about 1

    queries, keys, values, outputs = heads(model, 0)
    for offset, n in enumerate(range(min(2, config.kv_heads)), start=1):
        query, key = looking_back(offset, turns)
        queries[n * (config.n_heads // config.kv_heads)] += query[:, None] * always
        keys[n] += key[:, None] * always
    content = directions(C, len(slow), generator).t()  # (n, C): what of a token is compared, at random
    content -= (content @ common)[:, None] * always  # but not what all have in common
    note = directions(C, len(slow), generator).t()  # (n, C): where the stream keeps what stood before
    values[0], outputs[0] = 0.0, 0.0
    values[0][slow] = content / math.sqrt(len(slow))
    outputs[0][:, slow] = NOTED * scale * note.t()

    queries, keys, values, outputs = heads(model, 1)
    queries[0], keys[0] = 0.0, 0.0
    queries[0][slow], keys[0][slow] = content, note
    values[0], brought = copying(tokens - common, share, model.head.weight.float(), D)
    values[0] -= (values[0] @ common)[:, None] * always
    outputs[0] = COPIED * scale * brought


def looking_back(offset: int, turns: Tensor) -> tuple[Tensor, Tensor]:
    """A query and a key (D,) whose product, once turned by their positions, is largest `offset` tokens back."""
    size, ahead = torch.zeros(len(turns)), offset * turns
    size[: len(SHARES)] = torch.tensor(SHARES[: len(turns)]).mul(2 * len(turns)).sqrt()
    return torch.cat((size, torch.zeros_like(size))), torch.cat((size * ahead.cos(), size * ahead.sin()))


def heads(model: Modern, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of a layer's weights, head by head: queries (H, D, C), keys and values (G, D, C), outputs (H, C, D)."""
    attn = model.get_submodule(f"blocks.{layer}.attn")
    assert isinstance(attn, Attention)
    H, G, _ = attn.heads
    C = attn.qkv.in_features
    queries, keys, values = attn.qkv.weight.view(H + G + G, -1, C).split(attn.heads)
    return queries, keys, values, attn.out.weight.view(C, H, -1).transpose(0, 1)


def directions(C: int, n: int, generator: torch.Generator) -> Tensor:
    """(C, n): n directions at random, at right angles, of length 1."""
    return torch.linalg.qr(torch.randn(C, n, generator=generator)).Q


def copying(tokens: Tensor, share: Tensor, head: Tensor, D: int) -> tuple[Tensor, Tensor]:
    """What to read (D, C) of a token and what to write (C, D), so that its own logit rises by 1 on average.

    The best map from tokens (V, C) to what raises their logits, each as important as it is frequent, as far as D
    numbers can hold it.
    """
    identity, weighted = torch.eye(tokens.shape[1]), tokens * share[:, None]
    head = head - share @ head
    gram = (head * share[:, None]).t() @ head
    gram += (RIDGE * gram.trace() / len(gram) + 1e-6) * identity
    raises = torch.linalg.solve(gram, head.t()).t()  # (V, C): added to the stream, it raises one logit
    left, strength, right = torch.linalg.svd(
        torch.linalg.solve(weighted.t() @ tokens + 1e-3 * identity, weighted.t() @ raises)
    )
    reads, writes = left[:, :D].t() / math.sqrt(D), (strength[:D, None] * right[:D]).t() * math.sqrt(D)
    gained = share @ ((tokens @ reads.t() @ writes.t()) * head).sum(dim=1)
    return reads, writes / gained.clamp(min=1e-6)
