"""One new token for each text through the model: the forward pass laid out flat.

With a cache, a step multiplies every weight by one vector per text: it takes as long as the weights take to arrive from
memory. Anything else that a step does is seen at once, and of a model built from modules within modules that is mostly
the calls. So here each family's pass stands once more for a single token: the same functions on the same weights in the
same order, looked up once for a whole text. `model(ids, cache=cache)` is the twin, and is used wherever a part of the
model is not the one that this file knows (an adapter, a hook, a sharded module). For one text on a CPU the same step is
there in C (`step_in_c.py`), where this one is its twin.

    R texts, C emb_dim, H heads, G heads of keys and values, D head_dim, S tokens seen, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightwell.generation.mode import Model
from lightwell.generation.step_in_c import step_in_c
from lightwell.model import gpt2, modern
from lightwell.model.attention import attend, token_positions, visible_tokens
from lightwell.model.cache import KVCache

Step = Callable[[Tensor, KVCache], Tensor]
Part = Callable[[Tensor], Tensor]

# The modules of a block that are taken apart here, and those that are called, in the order of their use.
TAKEN_APART = ("", "attn", "mlp", "attn.drop", "mlp.drop")
KNOWN: dict[type, tuple[type, ...]] = {
    gpt2.GPT2: (gpt2.Block, gpt2.Attention, gpt2.MLP, nn.Dropout, nn.Dropout),
    modern.Modern: (modern.Block, modern.Attention, modern.MLP, nn.Dropout, nn.Dropout),
}
GPT2_PARTS = ("norm1", "attn.qkv", "attn.out", "norm2", "mlp.up", "mlp.down")
MODERN_PARTS = (
    *("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.out"),
    *("norm2", "mlp.gate", "mlp.up", "mlp.down"),
)


def one_token_step(model: Model) -> Step:
    """A function of `ids` (R, 1) int64 and the cache to the logits (R, V) of the token that follows, dropout off."""
    if not _is_plain(model):
        return lambda ids, cache: model(ids, cache=cache)[:, -1]
    flat = _gpt2_step(model) if isinstance(model, gpt2.GPT2) else _modern_step(model)
    in_c = step_in_c(model)
    if in_c is None:
        return flat

    def step(ids: Tensor, cache: KVCache) -> Tensor:
        alone = len(ids) == 1 and cache.start is None and cache.length < cache.max_length
        exact = cache.keys.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return in_c(ids, cache) if alone and exact else flat(ids, cache)

    return step


def _gpt2_step(model: gpt2.GPT2) -> Step:
    H, D = model.config.n_heads, model.config.head_dim
    tok_emb, pos_emb, final_norm, head = map(bound, (model.tok_emb, model.pos_emb, model.final_norm, model.head))
    blocks = [[bound(block.get_submodule(name)) for name in GPT2_PARTS] for block in model.blocks]

    def step(ids: Tensor, cache: KVCache) -> Tensor:
        mask = visible_tokens(ids, cache, None)
        x = tok_emb(ids[:, 0]) + pos_emb(token_positions(ids, cache)[:, 0])  # (R, C)
        for layer, (norm1, qkv, out, norm2, up, down) in enumerate(blocks):
            q, k, v = qkv(norm1(x)).view(-1, 3, H, 1, D).unbind(1)  # (R, H, 1, D) each
            k, v = cache[layer].extend(k, v)  # (R, H, S, D)
            x = x + out(attend(q, k, v, mask, 0.0).reshape(-1, H * D))
            x = x + down(F.gelu(up(norm2(x)), approximate="tanh"))
        cache.advance(1)
        return head(final_norm(x))

    return step


def _modern_step(model: modern.Modern) -> Step:
    config = model.config
    H, G, D = config.n_heads, config.kv_heads, config.size_per_head
    tok_emb, final_norm, head = map(bound, (model.tok_emb, model.final_norm, model.head))
    blocks = [[bound(block.get_submodule(name)) for name in MODERN_PARTS] for block in model.blocks]

    def step(ids: Tensor, cache: KVCache) -> Tensor:
        mask = visible_tokens(ids, cache, None)
        x = tok_emb(ids[:, 0])  # (R, C)
        turn = modern.rotation(token_positions(ids, cache), D, config.rope_theta, x.dtype)
        for layer, (norm1, qkv, q_norm, k_norm, out, norm2, gate, up, down) in enumerate(blocks):
            q, k, v = qkv(norm1(x)).view(-1, H + G + G, 1, D).split((H, G, G), dim=1)  # (R, H or G, 1, D)
            q, k = modern.rotate(q_norm(q), turn), modern.rotate(k_norm(k), turn)
            k, v = cache[layer].extend(k, v)  # (R, G, S, D)
            x = x + out(attend(q, k, v, mask, 0.0).reshape(-1, H * D))
            x = x + down(F.silu(gate(h := norm2(x))) * up(h))
        cache.advance(1)
        return head(final_norm(x))

    return step


def bound(module: nn.Module) -> Part:
    """What a module does in evaluation, as a function with its weights already looked up."""
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward:
        return partial(F.embedding, weight=module.weight)
    if isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward:
        shape, eps = module.normalized_shape, module.eps
        return partial(F.layer_norm, normalized_shape=shape, weight=module.weight, bias=module.bias, eps=eps)
    return module.forward


def _is_plain(model: Model) -> bool:
    """Whether the parts that are taken apart here are the ones that the model files define, and nothing listens in."""
    for module in model.modules():
        replaced = "forward" in vars(module)  # in this module alone
        if replaced or module._forward_hooks or module._forward_pre_hooks:
            return False
    if type(model) not in KNOWN or type(model.drop) is not nn.Dropout:
        return False
    parts = [tuple(type(block.get_submodule(name)) for name in TAKEN_APART) for block in model.blocks]
    return all(types == KNOWN[type(model)] for types in parts)
