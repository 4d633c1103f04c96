"""The step in C, held to the step in PyTorch and to the model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from step_helpers import CONFIGS, SIZES
from torch import nn

from lightwell.generation.cached import CachedTexts
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
    slow = model if kind == "bf16" else twin
    ids = torch.randint(31, (1, 12), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            caches = [KVCache(config, 1) for _ in range(2)]
            for cache in caches:
                twin(ids[:, :6], cache=cache)
            expected = [slow(ids[:, t : t + 1], cache=caches[0])[:, -1] for t in range(6, 12)]
            step = step_in_c(model)
            assert step is not None
            got = [step(ids[:, t : t + 1], caches[1]) for t in range(6, 12)]
    finally:
        torch.set_num_threads(before)
    near = 0.03 if kind == "bf16" else 2e-5  # inputs and results are rounded, and a sum in another order may tip that
    for mine, theirs in zip(
        (torch.stack(got), caches[1].keys, caches[1].values), (torch.stack(expected), caches[0].keys, caches[0].values)
    ):
        torch.testing.assert_close(mine, theirs, rtol=near, atol=near)
    assert caches[1].length == 12


def test_autocast_is_left_to_the_other_step(monkeypatch) -> None:
    """Its products are rounded: a text alone would not be the one that it is beside others."""
    config, called = CONFIGS[2], []
    monkeypatch.setattr("lightwell.generation.step.step_in_c", lambda model: lambda ids, cache: called.append(ids))
    step, ids = one_token_step(random_model(config)), torch.tensor([[3]])
    with torch.inference_mode():
        step(ids, KVCache(config, 1))
        assert len(called) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert step(ids, KVCache(config, 1, dtype=torch.bfloat16)).shape == (1, 31)
    assert len(called) == 1


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
    half = random_model(CONFIGS[3])
    half.tok_emb.to(torch.bfloat16)
    assert step_in_c(half) is None

    class Louder(type(model.final_norm)):
        def forward(self, x):
            return 3 * super().forward(x)

    louder = random_model(config)
    louder.final_norm = Louder(24, louder.final_norm.eps)
    assert step_in_c(louder) is None
    wider = random_model(config)
    wider.blocks[0].attn.qkv = nn.Linear(24, 99, bias=False)
    assert step_in_c(wider) is None


@pytest.mark.parametrize("change", [lay_out, lambda model: model.double().float(), lambda model: model.to("meta")])
def test_what_becomes_of_the_modules_does_not_move_the_weights_under_its_feet(change) -> None:
    config, ids = CONFIGS[0], torch.tensor([[3]])
    with torch.inference_mode():
        model = random_model(config)
        step, cache = step_in_c(model), KVCache(config, 1)
        before = step(ids, cache).clone()
        change(model)
        others = [torch.full((n,), float("nan")) for n in range(1, 3000)]  # memory that was freed is taken again
        cache.reset()
        assert torch.equal(step(ids, cache), before), len(others)


def test_a_full_cache_is_not_written_past_its_end() -> None:
    model = random_model(CONFIGS[0])
    cache = KVCache(CONFIGS[0], 1, max_length=3)
    cache.length = 3
    with torch.inference_mode():
        one_token_step(model)(torch.tensor([[1]]), cache)
    assert not cache.keys.any()


@pytest.mark.parametrize("kind", ["float32", *KINDS])
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]], ids=lambda config: config.family)
def test_a_text_is_the_same_alone_beside_another_and_when_that_has_left(config, kind: str) -> None:
    """Past the context, too, where the cache is filled anew."""
    model = random_model(config)
    model = model if kind == "float32" else quantize(model, kind)
    given = torch.randint(31, (30,), generator=torch.Generator().manual_seed(2)).tolist()

    def likeliest(others: list[list[int]], leave_after: int = 99) -> list[int]:
        texts, found = CachedTexts(model, [[7, 3], *others], max_new_tokens=30), []
        for n, token in enumerate(given):
            if n == leave_after:
                texts.keep([0])
            found.append(int(texts.next_logits()[0].argmax()))
            texts.append([token] * len(texts.sequences))
        return found

    with torch.inference_mode():
        alone = likeliest([])
        assert len(set(alone)) > 5
        assert likeliest([[9, 30]], 5) == likeliest([[9, 30]]) == likeliest([[9, 30, 2]], 5) == alone


def test_engines_write_the_same_with_it_and_without(monkeypatch) -> None:
    config = type(CONFIGS[2])(**{**SIZES, "vocab_size": 257}, n_heads=4)
    engine = Engine(random_model(config), BytesTokenizer())
    greedy = Sampling(temperature=0.0)

    def written() -> list[int]:
        text = engine.stream(["ab"], max_new_tokens=40, sampling=greedy)
        for _ in text:
            pass
        return text.ids[0]

    ids = written()
    assert engine.generate_ids([256, *b"ab"], max_new_tokens=len(ids), sampling=greedy) == ids
    monkeypatch.setattr("lightwell.generation.step.step_in_c", lambda model: None)
    assert written() == ids


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_torch_takes_by_default_does_not_matter(dtype) -> None:
    model, ids = random_model(CONFIGS[0]), torch.tensor([[3]])
    cache = KVCache(model.config, 1)
    expected = step_in_c(model)(ids, cache)
    torch.set_default_dtype(dtype)
    try:
        cache.reset()
        found = step_in_c(model)(ids, cache)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
