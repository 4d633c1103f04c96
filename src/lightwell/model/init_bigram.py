"""Embeddings that know from the beginning which token follows which: counted in a second instead of learned in minutes.

A small model spends the first part of a short training on learning pairs of tokens. Those can be counted. Let j follow
i c[i, j] times, n[i] be the sum of these, d[i] the number of different ones, and p[j] the share of j in the text.
Smoothed by absolute discounting (Ney, Essen and Kneser 1994), the chance of j after i is

    P(j | i) = max(c[i, j] - DISCOUNT, 0) / n[i] + back[i] p[j],         back[i] = DISCOUNT d[i] / n[i]
    log P(j | i) = log p[j] + log back[i] + S[i, j],                     S[i, j] = log(1 + kept[i, j] / (back[i] p[j]))

with `kept` the first term. S is 0 for all pairs that were never seen, and log back[i], the same for each j, makes no
difference to a softmax. The largest singular vectors of S, weighted by how often its rows and columns are met, are the
embeddings (Levy and Goldberg 2014 find nearly the same matrix inside word2vec), scaled to what the final norm will make
of them; the head is the least-squares answer to "which logits should follow". The blocks, which begin near the
identity, leave that as it is, so that the first training step already has about the loss of the counts, as far as
`emb_dim` numbers per token can hold them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

DISCOUNT = 0.75
SCALE = 0.1  # root mean square of the embeddings: AdamW's steps, of 0.002 to 0.02, are to be small beside it (LOG.md)
OWN = 0.1  # of an embedding's squares is chance: to copy a token, attention must know it from others (LOG.md)
RIDGE = 1e-4  # of the mean square of a feature, 1
MORE, ROUNDS = 8, 3  # of the randomised decomposition: vectors more than wanted, and products with the square


@torch.no_grad()
def initialise_from_pairs(model: nn.Module, ids: np.ndarray, generator: torch.Generator) -> None:
    """Sets `tok_emb` and `head` of an untied GPT2 or Modern in place from the tokens `ids` (N,) of its text, N > 1.

    To be called with one thread: with more, sums in another order may turn the singular vectors.
    """
    embedding, head = map(model.get_parameter, ("tok_emb.weight", "head.weight"))
    V, C = head.shape
    above_chance, share = surprise_of_pairs(ids, V)
    features = embed(above_chance, share, C, generator)  # (V, C)
    # Least squares, each row as important as it is frequent: (X' p X) head' = X' p (S + log p)
    weighted = features * share[:, None]
    wanted = torch.sparse.mm(above_chance.t(), weighted).t() + weighted.sum(0)[:, None] * share.log()  # (C, V)
    gram = weighted.t() @ features + RIDGE * torch.eye(C, dtype=weighted.dtype)
    found = torch.linalg.solve(gram, wanted).t()  # (V, C)
    embedding.copy_(SCALE * features)
    head.copy_(found - found.mean(0))  # what all logits have in common says nothing, and would take their precision


def surprise_of_pairs(ids: np.ndarray, V: int) -> tuple[Tensor, Tensor]:
    """S, sparse (V, V), and p (V,), as above, float32."""
    ids = ids.astype(np.int64)
    frequency = np.bincount(ids, minlength=V) + 0.5
    share = frequency / frequency.sum()
    pairs, counts = np.unique(ids[:-1] * V + ids[1:], return_counts=True)
    first, second = np.divmod(pairs, V)
    different = np.bincount(first, minlength=V)
    values = np.log1p((counts - DISCOUNT) / (DISCOUNT * different[first] * share[second]))
    surprise = _sparse(torch.from_numpy(np.stack((first, second))), torch.from_numpy(values.astype(np.float32)), V)
    return surprise, torch.from_numpy(share.astype(np.float32))


def embed(above_chance: Tensor, share: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """(V, width) numbers for each token, of root mean square 1: tokens that are followed by the like are alike.

    One component is the same for all: the head puts there what is frequent. Where the text has fewer singular vectors
    than there is room for, the rest is chance; and a part of all numbers is, so that no two tokens are the same.
    """
    V = len(share)
    weight = share.sqrt()
    first, second = above_chance.indices()
    weighted = _sparse(above_chance.indices(), above_chance.values() * weight[first] * weight[second], V)
    rank = min(width - 1, V)
    vectors, strength = largest_components(weighted, rank, generator)
    features = vectors * strength.sqrt() / weight[:, None]
    typical = features.norm(dim=1).median().clamp(min=1e-6)
    rest = torch.randn(V, width - 1 - rank, generator=generator, dtype=weight.dtype) * typical / math.sqrt(width)
    features = normalised(torch.cat((features, rest, typical.expand(V, 1)), dim=1))
    own = torch.randn(features.shape, generator=generator, dtype=features.dtype)
    return normalised(math.sqrt(1 - OWN) * features + math.sqrt(OWN) * own)


def normalised(rows: Tensor) -> Tensor:
    """Each row with root mean square 1."""
    return rows / rows.square().mean(dim=1, keepdim=True).sqrt()


def largest_components(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The first left singular vectors (V, rank) and singular values (rank,) of a sparse square matrix.

    Randomised (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1): close, not exact, in a fraction of the time.
    """
    V, turned = len(matrix), matrix.t()
    sketch = torch.randn(V, min(V, rank + MORE), generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(torch.sparse.mm(matrix, sketch)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(torch.sparse.mm(turned, basis)).Q
        basis = torch.linalg.qr(torch.sparse.mm(matrix, basis)).Q
    small = torch.linalg.svd(torch.sparse.mm(turned, basis).t(), full_matrices=False)
    return (basis @ small.U)[:, :rank], small.S[:rank]


def _sparse(places: Tensor, values: Tensor, V: int) -> Tensor:
    """(V, V), from places (2, n) in order and without doubles."""
    return torch.sparse_coo_tensor(places, values, (V, V), is_coalesced=True, check_invariants=False)
