"""Embeddings from counted pairs, held to the definition written out in loops and to what they are for."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.model.build import GPT
from lightwell.model.init_bigram import DISCOUNT, initialise_from_pairs, largest_components, surprise_of_pairs

V = 23


def text(tokens: int = 4000, seed: int = 0) -> np.ndarray:
    """Each token is followed by one of three of its own, mostly by the first."""
    random = np.random.default_rng(seed)
    after = random.integers(0, V - 1, size=(V, 3))  # the last token never comes
    ids = [0]
    for choice in random.choice(3, size=tokens - 1, p=[0.7, 0.2, 0.1]):
        ids.append(int(after[ids[-1], choice]))
    return np.array(ids, dtype=np.uint16)


def chance(ids: np.ndarray) -> np.ndarray:
    """P(j | i) by absolute discounting, in loops."""
    pairs, firsts = Counter(zip(ids[:-1].tolist(), ids[1:].tolist())), Counter(ids[:-1].tolist())
    times = Counter(ids.tolist())
    share = np.array([times[j] + 0.5 for j in range(V)]) / (len(ids) + 0.5 * V)
    result = np.zeros((V, V))
    for i in range(V):
        different = sum(first == i for first, _ in pairs)
        for j in range(V):
            if firsts[i]:
                kept = max(pairs[i, j] - DISCOUNT, 0)
                result[i, j] = (kept + DISCOUNT * different * share[j]) / firsts[i]
            else:
                result[i, j] = share[j]
    return result


def test_surprise_and_share_are_the_smoothed_chances_but_for_a_constant_of_each_row() -> None:
    ids = text(300)
    surprise, share = surprise_of_pairs(ids, V)
    wanted = torch.softmax(surprise.to_dense().double() + share.double().log(), dim=1)
    np.testing.assert_allclose(wanted.numpy(), chance(ids), atol=2e-7)


def test_largest_components_are_those_of_the_whole_decomposition() -> None:
    random = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(80, 80, generator=random)).Q for _ in range(2))
    strength = 0.8 ** torch.arange(80)
    matrix = (u * strength) @ v.T
    vectors, found = largest_components(matrix.to_sparse(), 10, torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, strength[:10], rtol=1e-3, atol=0)
    overlap = (vectors * u[:, :10]).sum(0).abs()
    assert overlap.min() > 0.99


@pytest.mark.parametrize("family", [GPTConfig, ModernConfig])
@pytest.mark.parametrize("emb_dim", [8, 24, 64])
def test_the_first_loss_is_that_of_the_counts(family: type, emb_dim: int) -> None:
    """As near as the width allows; without them it is that of a guess."""
    ids = text()
    config = family(vocab_size=V, context_length=16, emb_dim=emb_dim, n_heads=2, n_layers=2, tie_embeddings=False)
    model = GPT(config, torch.Generator().manual_seed(0)).eval()
    rows = torch.from_numpy(ids[:3201].astype(np.int64))
    inputs, targets = rows[:3200].view(200, 16), rows[1:3201].view(200, 16)

    def loss() -> float:
        with torch.no_grad():
            total, n = model(inputs, targets)
        return float(total / n)

    assert loss() > 0.98 * math.log(V)
    initialise_from_pairs(model, ids, torch.Generator().manual_seed(3))
    counts = -np.log(chance(ids)[rows[:3200].numpy(), rows[1:3201].numpy()]).mean()
    assert counts < 1.0
    assert loss() < (1.25 * counts + 0.05 if emb_dim > V else 0.8 * math.log(V))


def test_the_same_seed_gives_the_same_bits_and_blocks_are_left_alone() -> None:
    config = ModernConfig(vocab_size=V, context_length=16, emb_dim=16, n_heads=2, n_layers=1, tie_embeddings=False)
    models = [GPT(config, torch.Generator().manual_seed(0)) for _ in range(3)]
    for model in models[:2]:
        initialise_from_pairs(model, text(), torch.Generator().manual_seed(3))
    for (name, one), two, before in zip(
        models[0].named_parameters(), models[1].parameters(), models[2].parameters(), strict=True
    ):
        assert torch.equal(one, two), name
        assert torch.equal(one, before) != (name in ("tok_emb.weight", "head.weight")), name
        assert torch.isfinite(one).all()


@pytest.mark.parametrize("ids", [[0, 1], [5, 5, 5, 5], list(range(V))], ids=["two", "one kind", "each once"])
def test_texts_with_hardly_a_pair(ids: list[int]) -> None:
    config = ModernConfig(vocab_size=V, context_length=16, emb_dim=64, n_heads=2, n_layers=1, tie_embeddings=False)
    model = GPT(config, torch.Generator().manual_seed(0))
    initialise_from_pairs(model, np.array(ids, dtype=np.uint16), torch.Generator().manual_seed(3))
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    logits = model(torch.tensor([ids[:1]]))[0, -1]
    assert int(logits.argmax()) == ids[1]
