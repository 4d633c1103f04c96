"""The step in C, held to the step in PyTorch and to the model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.generation.engine import Engine
from lightwell.generation.layout import lay_out
from lightwell.generation.quantize import KINDS, quantize
from lightwell.generation.sample import Sampling
from lightwell.generation.step import one_token_step
from lightwell.generation.step_in_c import step_in_c
from lightwell.model.build import GPT
from lightwell.model.cache import KVCache
from lightwell.model.kernels import build
from lightwell.tokenizer.simple import BytesTokenizer

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no C kernels here: {build.why_not()}")

SIZES = {"vocab_size": 31, "context_length": 16, "emb_dim": 24, "n_layers": 3}
CONFIGS = [
    GPTConfig(**SIZES, n_heads=3),
    GPTConfig(**SIZES, n_heads=4, qkv_bias=True, hidden_dim=21, tie_embeddings=False),
    ModernConfig(**SIZES, n_heads=4, n_kv_heads=2, head_dim=10),
    ModernConfig(**SIZES, n_heads=3, hidden_dim=21, tie_embeddings=False, rope_theta=50.0),
]


def random_model(config, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    model = GPT(config, random).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=random) * 0.2)
    return model


def twin_of(model):
    """The same model with plain linear layers, whose weights are the numbers that the small ones stand for."""
    twin = GPT(model.config).eval()
    with torch.no_grad():
        for name, part in twin.named_modules():
            if isinstance(part, nn.Linear | nn.LayerNorm | nn.Embedding) or hasattr(part, "eps"):
                other = model.get_submodule(name)
                if name == "head" and model.config.tie_embeddings:
                    part.weight = nn.Parameter(other.weight.detach().clone())  # small weights are no longer tied
                else:
                    part.weight.copy_(other.weight)
                if getattr(part, "bias", None) is not None:
                    part.bias.copy_(other.bias)
    return twin


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.family}-{config.n_heads}")
@pytest.mark.parametrize("kind", ["float32", *KINDS])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_is_the_model_on_one_token(config, kind: str, threads: int) -> None:
    model = random_model(config)
    model = model if kind == "float32" else quantize(model, kind)
    twin = twin_of(model)
    ids = torch.randint(31, (1, 12), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            caches = [KVCache(config, 1) for _ in range(2)]
            for cache in caches:
                twin(ids[:, :6], cache=cache)
            expected = [twin(ids[:, t : t + 1], cache=caches[0])[:, -1] for t in range(6, 12)]
            step = step_in_c(model)
            assert step is not None
            got = [step(ids[:, t : t + 1], caches[1]) for t in range(6, 12)]
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(caches[1].keys, caches[0].keys, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(caches[1].values, caches[0].values, rtol=2e-5, atol=2e-5)
    assert caches[1].length == 12


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.family}-{config.n_heads}")
def test_reads_and_writes_a_cache_in_bfloat16(config) -> None:
    model, ids = random_model(config), torch.tensor([[3, 7, 5, 30, 2, 1]])
    with torch.inference_mode():
        exact, rounded = KVCache(config, 1), KVCache(config, 1, dtype=torch.bfloat16)
        for cache in (exact, rounded):
            step = step_in_c(model)
            logits = [step(ids[:, t : t + 1], cache) for t in range(6)]
    torch.testing.assert_close(rounded.keys, exact.keys.to(torch.bfloat16), rtol=0.05, atol=0.05)
    full = KVCache(config, 1)
    with torch.inference_mode():
        last = model(ids, cache=full)[:, -1]
    assert (logits[-1] - last).norm() < 0.05 * last.norm()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.family}-{config.n_heads}")
@pytest.mark.parametrize("kind", ["float32", *KINDS])
def test_laid_out_weights_are_read_too(config, kind: str) -> None:
    model = random_model(config)
    model = model if kind == "float32" else quantize(model, kind)
    cache, ids = KVCache(config, 1), torch.tensor([[3]])
    with torch.inference_mode():
        before = step_in_c(model)(ids, cache).clone()
        lay_out(model)
        cache.reset()
        assert torch.equal(step_in_c(model)(ids, cache), before)


def test_what_it_does_not_know_is_left_to_the_other_step() -> None:
    config = CONFIGS[2]
    assert step_in_c(random_model(config).double()) is None
    model = random_model(config)
    model.blocks[1].mlp.up = nn.Sequential(model.blocks[1].mlp.up)
    assert step_in_c(model) is None
    other = random_model(CONFIGS[0])
    other.final_norm = nn.LayerNorm(24, bias=False)
    assert step_in_c(other) is None
    by_columns = random_model(config)
    by_columns.head.weight = nn.Parameter(by_columns.head.weight.detach().t().contiguous().t())
    assert step_in_c(by_columns) is None
    with torch.device("meta"):
        assert step_in_c(GPT(config)) is None


def test_a_full_cache_is_not_written_past_its_end() -> None:
    model = random_model(CONFIGS[0])
    cache = KVCache(CONFIGS[0], 1, max_length=3)
    cache.length = 3
    with torch.inference_mode():
        one_token_step(model)(torch.tensor([[1]]), cache)
    assert not cache.keys.any()


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]], ids=lambda config: config.family)
def test_texts_go_on_when_their_window_is_cut_or_others_leave(config) -> None:
    """Past the context the cache is filled anew, and one of several texts may be left alone: the same tokens."""
    config = type(config)(**{**SIZES, "vocab_size": 257}, n_heads=4)
    model = random_model(config)
    engine = Engine(model, BytesTokenizer())
    greedy = Sampling(temperature=0.0)
    alone = engine.stream(["ab"], max_new_tokens=40, sampling=greedy)
    together = engine.stream(["ab", "xyz"], max_new_tokens=40, sampling=greedy)
    for _ in alone:
        pass
    for _ in together:
        pass
    assert alone.ids[0] == together.ids[0]
    assert engine.generate_ids([256, *b"ab"], max_new_tokens=len(alone.ids[0]), sampling=greedy) == alone.ids[0]


def test_without_a_compiler_pytorch_takes_the_steps() -> None:
    code = (
        "import torch\n"
        "from lightwell.config.gpt import ModernConfig\n"
        "from lightwell.generation.step_in_c import step_in_c\n"
        "from lightwell.model.build import GPT\n"
        "print(step_in_c(GPT(ModernConfig(vocab_size=31, context_length=16, emb_dim=24, n_layers=1, n_heads=4))))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"LIGHTWELL_KERNELS": "0"}, check=True
    )
    assert found.stdout == "None\n"
