"""The engine: cached, batched and streamed, held to the naive loop token for token; and what it shows and refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.errors import TokenizerError, UserError
from lightwell.generation.cached import last_position_only
from lightwell.generation.engine import Engine
from lightwell.generation.naive import generate_ids
from lightwell.generation.sample import GREEDY, Sampling
from lightwell.model.build import GPT
from lightwell.runtime.seeds import generator
from lightwell.tokenizer.simple import BytesTokenizer

TOKENIZER = BytesTokenizer()
SEPARATOR = TOKENIZER.separator_id
SIZES = {"vocab_size": TOKENIZER.vocab_size, "emb_dim": 24, "n_heads": 3, "n_layers": 2, "tie_embeddings": False}
CONFIGS = {
    "gpt2": lambda context_length: GPTConfig(**SIZES, context_length=context_length, drop_rate=0.5),
    "modern": lambda context_length: ModernConfig(
        **SIZES | {"n_heads": 4}, n_kv_heads=2, head_dim=6, context_length=context_length, drop_rate=0.5
    ),
}
PROMPTS = ["Once", "", "a longer prompt", "The"]


@pytest.fixture(params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def build(family: str, context_length: int = 32) -> nn.Module:
    """A random model whose next token depends on all that it sees: large weights make its answers varied."""
    model = GPT(CONFIGS[family](context_length), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(30 if "head" in name else 40)
    return model


def naive(model: nn.Module, prompt: str, n: int, sampling: Sampling, seed: int = 0, nth: int = 0) -> list[int]:
    return generate_ids(
        model,
        [SEPARATOR, *TOKENIZER.encode(prompt)],
        max_new_tokens=n,
        sampling=sampling,
        generator=generator(seed, "generate", nth),
        separator_id=SEPARATOR,
    )


def run(model: nn.Module, prompts, **options):
    generation = Engine(model, TOKENIZER).stream(prompts, **options)
    for _ in generation:
        pass
    return generation


SAMPLINGS = [GREEDY, Sampling(temperature=1.5, top_p=0.95), Sampling(temperature=0.8, top_k=30, repetition_penalty=1.3)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top_p", "penalised"])
@pytest.mark.parametrize("context_length", [64, 17])
def test_a_batch_of_unequal_prompts_is_the_naive_loop_for_each(family: str, sampling, context_length: int) -> None:
    """40 tokens: within a context of 64, and well beyond one of 17, where windows are cut and the cache is refilled."""
    model = build(family, context_length)
    expected = [naive(model, prompt, 40, sampling) for prompt in PROMPTS]
    assert run(model, PROMPTS, max_new_tokens=40, sampling=sampling).ids == expected
    for prompt, ids in zip(PROMPTS, expected):
        assert run(model, [prompt], max_new_tokens=40, sampling=sampling).ids == [ids]
    assert len(set(map(tuple, expected))) == len(PROMPTS)
    assert len({token for ids in expected for token in ids}) > 20


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_the_smallest_contexts(family: str, context_length: int) -> None:
    model = build(family, context_length)
    ids = run(model, [""], max_new_tokens=9, sampling=Sampling(temperature=1.5)).ids
    assert ids == [naive(model, "", 9, Sampling(temperature=1.5))]


def test_a_truncated_prompt_is_seen_as_the_naive_loop_sees_it(family: str) -> None:
    model, long = build(family, 16), "a prompt that is longer than the context"
    chosen = Sampling(temperature=1.2)
    ids = run(model, ["x", long], max_new_tokens=20, sampling=chosen, truncate_prompt=True).ids
    assert ids == [naive(model, "x", 20, chosen), naive(model, long, 20, chosen)]


def test_rows_that_end_early_leave_the_others_alone(family: str) -> None:
    """Stop strings make rows leave at different steps; what is left shrinks the batch and its cache."""
    model, chosen = build(family, 24), Sampling(temperature=1.5)
    prompts = ["prompt"[:i] for i in range(6)]
    stop = ["a", "7", "\n", "Q", "é"]
    together = run(model, prompts, max_new_tokens=60, sampling=chosen, stop=stop)
    alone = [run(model, [prompt], max_new_tokens=60, sampling=chosen, stop=stop) for prompt in prompts]
    assert together.ids == [one.ids[0] for one in alone]
    assert together.texts == [one.texts[0] for one in alone]
    assert len({len(ids) for ids in together.ids}) > 2


def test_the_seed_decides_and_equal_prompts_differ(family: str) -> None:
    model, chosen = build(family), Sampling(temperature=1.5)
    first, second, third = run(model, ["same", "same", "other"], max_new_tokens=12, sampling=chosen, seed=1).ids
    assert first == naive(model, "same", 12, chosen, seed=1)
    assert second == naive(model, "same", 12, chosen, seed=1, nth=1)
    assert third == naive(model, "other", 12, chosen, seed=1)
    assert first != second
    assert run(model, ["same"], max_new_tokens=12, sampling=chosen, seed=2).ids != [first]


def test_the_head_works_on_the_last_position_only(family: str) -> None:
    model = build(family).eval()
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        whole = model(ids)
        with last_position_only(model):
            last = model(ids)
        assert model(ids).shape == whole.shape
    torch.testing.assert_close(last, whole[:, -1:])


class Scripted(nn.Module):
    """A model that says what it is told to: the logits of `script`, a string or ids, one after the other.

    It shows what text the engine makes of given tokens. The prompt is opened by the separator and nothing else.
    """

    def __init__(self, script: bytes | list[int]) -> None:
        super().__init__()
        self.config = CONFIGS["gpt2"](256)
        self.head = nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))
        self.script = list(script)
        self.n_calls = 0

    def forward(self, ids: torch.Tensor, cache) -> torch.Tensor:
        cache.advance(ids.shape[1])
        logits = torch.zeros(1, 1, self.config.vocab_size)
        logits[..., self.script[self.n_calls]] = 1.0
        self.n_calls += 1
        return self.head(logits)


def told(script: bytes | list[int], stop=(), n: int = 100):
    generation = Engine(Scripted(script), TOKENIZER).stream([""], max_new_tokens=n, sampling=GREEDY, stop=stop)
    pieces = [piece for (piece,) in generation]
    assert "".join(pieces) == generation.texts[0]
    return generation, pieces


def test_ends_at_the_separator_which_is_not_text() -> None:
    generation, pieces = told([*b"ab", SEPARATOR, *b"cd"])
    assert pieces == ["a", "b", ""]
    assert (generation.endings, generation.ids) == (["separator"], [list(b"ab")])


def test_stop_strings_are_found_over_tokens_and_never_shown_in_part() -> None:
    generation, pieces = told(b"one EN two END three", stop=["END"])
    assert generation.texts == ["one EN two "]
    assert pieces[4:7] == ["", "", "EN "]
    assert generation.endings == ["stop"]


def test_text_held_back_is_shown_when_nothing_more_comes() -> None:
    assert told(b"one EN", stop=["END"], n=6)[0].texts == ["one EN"]
    assert told([*b"one EN", SEPARATOR], stop=["END"])[0].texts == ["one EN"]


def test_a_character_is_shown_whole_or_not_at_all() -> None:
    generation, pieces = told("aé☃".encode(), n=6)
    assert pieces == ["a", "", "é", "", "", "☃"]
    assert generation.endings == ["length"]
    assert told("a☃".encode(), n=3)[0].texts == ["a"]
    assert told([*b"a", *"☃".encode()[:2], SEPARATOR])[0].texts == ["a"]
    assert told([*b"a", 0xFF, *b"b"], n=3)[0].texts == ["a\ufffdb"]


def test_no_new_tokens_is_no_text() -> None:
    generation, pieces = told(b"abc", n=0)
    assert (pieces, generation.texts, generation.endings) == ([], [""], ["length"])


def test_generate_is_one_prompt_streamed(family: str) -> None:
    model, chosen = build(family), Sampling(temperature=1.1)
    text = Engine(model, TOKENIZER).generate("Once", max_new_tokens=20, sampling=chosen, seed=3)
    assert text == run(model, ["Once"], max_new_tokens=20, sampling=chosen, seed=3).texts[0] != ""


def test_ids_as_prompt_get_the_separator_once(family: str) -> None:
    model = build(family)
    text, ids, opened = "Once", TOKENIZER.encode("Once"), [SEPARATOR, *TOKENIZER.encode("Once")]
    options = {"max_new_tokens": 10, "sampling": GREEDY}
    assert run(model, [text], **options).ids == run(model, [ids], **options).ids == run(model, [opened], **options).ids


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top_p", "penalised"])
def test_bare_ids_go_on_to_the_given_length(family: str, sampling: Sampling) -> None:
    """No separator before them, no end at one: any token of a model whose tokenizer is somebody else's."""
    model, ids = build(family, 16), list(range(20))
    new = Engine(model, TOKENIZER).generate_ids(ids, max_new_tokens=30, sampling=sampling, seed=4)
    source = generator(4, "generate", 0)
    assert new == generate_ids(model, ids, max_new_tokens=30, sampling=sampling, generator=source)
    assert len(new) == 30
    assert Engine(model, TOKENIZER).generate_ids(ids, max_new_tokens=0) == []


@pytest.mark.parametrize(("ids", "sentence"), [([], "at least one token id"), ([257], "from 0 to 256, got 257")])
def test_bare_ids_are_checked(ids: list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Engine(build("gpt2"), TOKENIZER).generate_ids(ids, max_new_tokens=1)


def test_a_model_with_a_part_of_its_own_is_asked_itself(family: str) -> None:
    """Hooks, adapters and wrapped blocks are called; the flat step is for the parts it knows."""
    model = build(family, 16)
    calls: list[int] = []
    handle = model.blocks[1].mlp.down.register_forward_hook(lambda *_: calls.append(1))
    hooked = run(model, ["abc"], max_new_tokens=5, sampling=GREEDY).ids
    assert len(calls) == 5
    handle.remove()
    assert run(model, ["abc"], max_new_tokens=5, sampling=GREEDY).ids == hooked
    assert len(calls) == 5

    class Halved(type(model.blocks[0].mlp)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    model.blocks[0].mlp.__class__ = Halved
    assert run(model, ["abc"], max_new_tokens=9, sampling=GREEDY).ids == [naive(model, "abc", 9, GREEDY)]


def test_a_linear_layer_of_another_class_is_used_as_it_is(family: str) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = build(family, 16)
    plain = run(model, ["abc"], max_new_tokens=9, sampling=GREEDY).ids
    model.blocks[0].attn.qkv.__class__ = Doubled
    doubled = run(model, ["abc"], max_new_tokens=9, sampling=GREEDY).ids
    assert doubled == [naive(model, "abc", 9, GREEDY)] != plain


def test_tokens_that_the_tokenizer_does_not_have_are_never_chosen(family: str) -> None:
    """A model may have a few rows more than its tokenizer has tokens, to make its head's shape round."""
    config = CONFIGS[family](32).model_copy(update={"vocab_size": 320})
    model = GPT(config, torch.Generator().manual_seed(0))
    ids = run(model, ["a", "b"], max_new_tokens=100, sampling=Sampling(temperature=5.0)).ids
    assert max(map(max, ids)) < TOKENIZER.vocab_size
    assert sum(map(len, ids)) > 50


def test_the_model_is_left_as_it_was_between_tokens(family: str) -> None:
    """Half of it in training, and the caller's torch modes his own: a generation may be looked at while training."""
    model = build(family)
    model.train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for _ in Engine(model, TOKENIZER).stream(["x"], max_new_tokens=3, seed=1):
        assert [module.training for module in model.modules()] == before
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.head._forward_pre_hooks
    loss, _ = model(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
    loss.backward()


def test_a_cache_in_bfloat16_under_autocast(family: str) -> None:
    model = build(family).float()
    with torch.autocast("cpu", torch.bfloat16):
        generation = run(model, ["a", "bcd"], max_new_tokens=5, sampling=GREEDY)
    assert list(map(len, generation.ids)) == [5, 5]


@pytest.mark.parametrize(
    ("prompts", "options", "sentence"),
    [
        (["x" * 32], {}, "expected a prompt of at most 31 tokens.* got 32"),
        ([[1, 2, 300]], {}, "expected token ids from 0 to 256, got 300"),
        ([[-1]], {}, "expected token ids from 0 to 256, got -1"),
        ("text", {}, "expected a list of at least one prompt"),
        ([], {}, "expected a list of at least one prompt"),
        (["x"], {"max_new_tokens": -1}, "expected max_new_tokens to be 0 or more, got -1"),
        (["x"], {"stop": [""]}, "at least one character"),
    ],
)
def test_mistakes_are_said_before_anything_runs(prompts, options, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Engine(build("gpt2"), TOKENIZER).stream(prompts, **options)


def test_the_longest_prompt_that_fits(family: str) -> None:
    model = build(family)
    assert run(model, ["x" * 31], max_new_tokens=3, sampling=GREEDY).ids == [naive(model, "x" * 31, 3, GREEDY)]


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    config = CONFIGS["gpt2"](32).model_copy(update={"vocab_size": 200})
    with pytest.raises(TokenizerError, match=r"at most 200 tokens.*got one of 257"):
        Engine(GPT(config), TOKENIZER)
