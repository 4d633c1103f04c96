"""The flat step for one token, held to the model it is made from."""

from __future__ import annotations

import pytest
import torch
from step_helpers import CONFIGS
from torch import nn

from lightwell.generation.step import one_token_step
from lightwell.model.build import GPT
from lightwell.model.cache import KVCache


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.family}-{config.n_heads}")
@pytest.mark.parametrize("start", [None, [0, 3, 5]])
def test_is_the_model_on_one_token(config, start: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding and with rows that begin at different places; the model itself is not called."""
    random = torch.Generator().manual_seed(0)
    model = GPT(config, random).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=random, dtype=weight.dtype) * 0.3)
    ids = torch.randint(31, (3, 10), generator=random)
    with torch.inference_mode():
        caches = [KVCache(config, 3, dtype=torch.float64) for _ in range(2)]
        for cache in caches:
            cache.start = None if start is None else torch.tensor(start)
            model(ids[:, :6], cache=cache)
        expected = [model(ids[:, t : t + 1], cache=caches[0])[:, -1] for t in range(6, 10)]
        step = one_token_step(model)
        monkeypatch.setattr(type(model), "forward", None)
        got = [step(ids[:, t : t + 1], caches[1]) for t in range(6, 10)]
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(caches[1].keys, caches[0].keys, rtol=1e-12, atol=1e-12)
    assert caches[1].length == 10


def test_a_part_that_is_another_leaves_the_step_to_the_model() -> None:
    def changed_by(change) -> bool:
        model = GPT(CONFIGS[0], torch.Generator().manual_seed(0)).eval()
        change(model)
        ids = torch.tensor([[5]])
        with torch.inference_mode():
            expected = model(ids, cache=KVCache(CONFIGS[0], 1))[:, -1]
            found = one_token_step(model)(ids, KVCache(CONFIGS[0], 1))
            plain = one_token_step(GPT(CONFIGS[0], torch.Generator().manual_seed(0)).eval())
            torch.testing.assert_close(found, expected)
            return not torch.allclose(found, plain(ids, KVCache(CONFIGS[0], 1)))

    def louder(module):
        before = module.forward
        module.forward = lambda x: 3 * before(x)

    adapter = nn.Sequential(nn.Dropout(0.0), nn.Linear(CONFIGS[0].emb_dim, CONFIGS[0].emb_dim))
    assert changed_by(lambda model: setattr(model.blocks[1].mlp, "drop", adapter))
    assert changed_by(lambda model: setattr(model, "drop", adapter))
    assert changed_by(lambda model: louder(model.blocks[0].mlp.down))
    assert not changed_by(lambda model: None)
