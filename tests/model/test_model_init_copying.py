"""Attention that copies from the beginning: where its heads look, and what that is worth on text that repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightwell.config.gpt import ModernConfig
from lightwell.model import init_copying
from lightwell.model.build import GPT
from lightwell.model.init_bigram import initialise_from_pairs
from lightwell.model.init_copying import initialise_copying
from lightwell.model.modern import Block, Modern, rotation

V, T = 211, 64
USED = V // 2  # the other tokens never come
FREQUENT = 1 / np.arange(1, USED + 1)  # as words are (Zipf 1949)
TEXT = np.random.default_rng(0).choice(USED, size=20_000, p=FREQUENT / FREQUENT.sum()).astype(np.uint16)
REPEATED = torch.from_numpy(np.random.default_rng(1).permuted(np.tile(np.arange(USED), (40, 1)), axis=1)[:, : T // 2])
REPEATED = torch.cat((REPEATED, REPEATED), dim=1)  # (40, T): what stood before comes again, each token once before


def made(copying: bool = True, **sizes: int) -> Modern:
    sizes = {"vocab_size": V, "context_length": T, "emb_dim": 128, "n_heads": 4, "n_layers": 2} | sizes
    model = GPT(ModernConfig(**sizes, tie_embeddings=False), torch.Generator().manual_seed(0)).eval()
    initialise_from_pairs(model, TEXT, torch.Generator().manual_seed(1))
    if copying:
        initialise_copying(model, TEXT, torch.Generator().manual_seed(2))
    return model


def weights_of(block: Block, x: Tensor, head: int) -> Tensor:
    """Where one head looks: (B, T, T)."""
    attn = block.attn
    D = attn.out.in_features // attn.heads[0]
    q, k, _ = attn.queries_keys_values(attn.qkv(block.norm1(x)), rotation(torch.arange(T)[None], D, 10000.0, x.dtype))
    k = k.repeat_interleave(attn.heads[0] // attn.heads[1], dim=1)
    scores = q[:, head] @ k[:, head].transpose(1, 2) / D**0.5
    return scores.masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf).softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_heads_of_the_first_block_look_back_by_one_and_two(n_kv_heads: int) -> None:
    model = made(n_kv_heads=n_kv_heads)
    x = model.tok_emb(REPEATED)
    for offset, head in ((1, 0), (2, 4 // n_kv_heads)):
        usual = torch.stack([weights_of(model.blocks[0], x, head).diagonal(-n, 1, 2).mean() for n in range(8)])
        assert int(usual.argmax()) == offset
        assert usual[offset] > 0.3


def attention_and_loss() -> tuple[float, float]:
    """How much the second block's first head looks at what came after the same token, and the loss on what came."""
    model = made()
    turn = rotation(torch.arange(T)[None], 32, 10000.0, torch.float32)
    x = model.blocks[0](model.tok_emb(REPEATED), turn, None, None)
    right = weights_of(model.blocks[1], x, 0).diagonal(1 - T // 2, 1, 2)[:, 1:].mean()
    logits = model(REPEATED)[:, T // 2 - 1 : -1]
    return float(right), float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), REPEATED[:, T // 2 :].flatten()))


@torch.no_grad()
def test_the_second_block_finds_what_came_after_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """By little at first, as small steps have most to learn from that; clearly if notes and copies are strong."""
    begins, loss = attention_and_loss()
    assert begins > 2 / (0.75 * T)  # 0.75 T tokens are in sight on average
    monkeypatch.setattr(init_copying, "COPIED", 0.0)
    assert loss < attention_and_loss()[1]
    monkeypatch.setattr(init_copying, "NOTED", 10.0)
    _, without = attention_and_loss()
    monkeypatch.setattr(init_copying, "COPIED", 5.0)
    strong, loss = attention_and_loss()
    assert strong > 0.15  # some more lies beside it: heads that look back are not sharp
    assert loss < without - 0.5


@torch.no_grad()
def test_the_first_loss_on_the_text_stays_what_the_pairs_made_it() -> None:
    rows = torch.from_numpy(TEXT[: 40 * T + 1].astype(np.int64))
    with_, without = (float(made(copying)(rows[:-1].view(-1, T), rows[1:].view(-1, T))[0]) for copying in (True, False))
    assert with_ < without + 0.05 * (40 * T)


@pytest.mark.parametrize("sizes", [{"n_layers": 1}, {"head_dim": 2}, {"head_dim": 256}])
def test_where_there_is_no_room_for_it_nothing_changes(sizes: dict[str, int]) -> None:
    for (name, one), other in zip(made(True, **sizes).named_parameters(), made(False, **sizes).parameters()):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("sizes", [{"n_heads": 1, "emb_dim": 16}, {"emb_dim": 8, "n_heads": 2}, {"n_kv_heads": 1}])
def test_only_the_first_two_attentions_change_and_all_is_finite(sizes: dict[str, int]) -> None:
    pairs = zip(made(True, n_layers=3, **sizes).named_parameters(), made(False, n_layers=3, **sizes).parameters())
    for (name, one), other in pairs:
        assert torch.isfinite(one).all(), name
        changes = name.startswith(("blocks.0.attn", "blocks.1.attn")) and name.endswith(("qkv.weight", "out.weight"))
        assert torch.equal(one, other) != changes, name


@pytest.mark.parametrize("ids", [[0, 1], [5, 5, 5, 5], list(range(V))], ids=["two", "one kind", "each once"])
def test_texts_with_hardly_a_pair(ids: list[int]) -> None:
    config = ModernConfig(vocab_size=V, context_length=T, emb_dim=64, n_heads=2, n_layers=2, tie_embeddings=False)
    model, tokens = GPT(config, torch.Generator().manual_seed(0)), np.array(ids, dtype=np.uint16)
    initialise_from_pairs(model, tokens, torch.Generator().manual_seed(3))
    initialise_copying(model, tokens, torch.Generator().manual_seed(4))
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    logits = model(torch.tensor([ids[:1]]))[0, -1]
    assert int(logits.argmax()) == ids[1]
