"""Sampling held to a slow twin in plain Python (float64), to transformers' processors, and to its own probabilities."""

from __future__ import annotations

import math
from inspect import signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.errors import UserError
from lightwell.generation import sample as room
from lightwell.generation.sample import GREEDY, TEMPERATURE, Sampling, draw, sample


def twin(logits: list[float], settings: Sampling, history: list[int]) -> list[float]:
    """The probabilities from which `sample` draws, one token and one rule at a time."""
    logits = list(logits)
    for token in set(history):
        penalty = settings.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    logits = [x / settings.temperature for x in logits]

    def softmax(values: list[float]) -> list[float]:
        exps = [math.exp(x - max(values)) for x in values]
        return [e / sum(exps) for e in exps]

    if settings.top_k is not None:
        kth = sorted(logits, reverse=True)[: settings.top_k][-1]
        logits = [x if x >= kth else -math.inf for x in logits]
    if settings.top_p is not None and settings.top_p < 1:
        p, total, nucleus = softmax(logits), 0.0, []
        for token in sorted(range(len(p)), key=lambda i: -p[i]):
            if total >= settings.top_p:
                break
            nucleus.append(token)
            total += p[token]
        logits = [x if p[i] >= p[nucleus[-1]] else -math.inf for i, x in enumerate(logits)]
    if settings.min_p is not None:
        p = softmax(logits)
        logits = [x if p[i] >= settings.min_p * max(p) else -math.inf for i, x in enumerate(logits)]
    return softmax(logits)


class Chance:
    """Stands in for `draw` to show what it would draw from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "draw", self)

    def __call__(self, logits: torch.Tensor, _: object) -> torch.Tensor:
        self.probabilities = logits.softmax(-1)
        return logits.argmax(-1)


finite = st.floats(-20, 20).map(lambda x: round(x, 3))
some_settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 20),
    top_p=st.none() | st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.none() | st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(finite, min_size=1, max_size=12), some_settings, st.data())
def test_the_probabilities_are_those_of_the_twin(logits: list[float], chosen: Sampling, data: st.DataObject) -> None:
    history = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=5))
    with pytest.MonkeyPatch.context() as monkeypatch:
        chance = Chance(monkeypatch)
        sample(torch.tensor([logits], dtype=torch.float64), chosen, [history], [])
    expected = torch.tensor([twin(logits, chosen, history)], dtype=torch.float64)
    torch.testing.assert_close(chance.probabilities, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("looks", [(1,), (7, 400), (5000,)])
def test_top_p_does_not_depend_on_how_many_tokens_it_looks_at_first(looks: tuple[int, ...], monkeypatch) -> None:
    logits = torch.randn(3, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    monkeypatch.setattr(room, "LOOKS", looks)
    kept = room.keep_top_p(logits, 0.93).isfinite()
    for row, mask in zip(logits.tolist(), kept):
        expected = twin(row, Sampling(top_p=0.93), [])
        assert mask.tolist() == [p > 0 for p in expected]
    assert 1 < kept.sum() < kept.numel()


def test_each_row_has_its_own_answer() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * 4
    chosen = Sampling(temperature=0.8, top_k=12, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    histories = [[i, i + 1, 39] for i in range(5)]
    together = sample(logits, chosen, histories, [torch.Generator().manual_seed(i) for i in range(5)])
    alone = [
        int(sample(logits[i : i + 1], chosen, histories[i : i + 1], [torch.Generator().manual_seed(i)]))
        for i in range(5)
    ]
    assert together.tolist() == alone


def test_agrees_with_the_processors_of_transformers(monkeypatch) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2)) * 3
    history = torch.randint(300, (4, 20), generator=torch.Generator().manual_seed(3))
    expected = logits
    for process in (
        processors.RepetitionPenaltyLogitsProcessor(1.3),
        processors.TemperatureLogitsWarper(0.7),
        processors.TopKLogitsWarper(50),
        processors.TopPLogitsWarper(0.8),
        processors.MinPLogitsWarper(0.05),
    ):
        expected = process(history, expected)
    chance = Chance(monkeypatch)
    chosen = Sampling(temperature=0.7, top_k=50, top_p=0.8, min_p=0.05, repetition_penalty=1.3)
    sample(logits, chosen, history.tolist(), [])
    torch.testing.assert_close(chance.probabilities, expected.softmax(-1))
    assert 0 < (chance.probabilities > 0).sum() < 4 * 50


def test_frequencies_are_the_probabilities() -> None:
    """Pearson's chi-squared of 40,000 draws: 5 degrees of freedom exceed 20.5 once in a thousand; the seed is fixed."""
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)
    generator, n = torch.Generator().manual_seed(4), 40_000
    drawn = draw(probabilities.log().expand(n, -1), [generator] * n)
    counts = torch.bincount(drawn, minlength=7)
    assert counts[1] == 0
    expected = n * probabilities[probabilities > 0]
    assert float(((counts[probabilities > 0] - expected) ** 2 / expected).sum()) < 20.5


@pytest.mark.parametrize("chance", [0.0, 1.0 - 2.0**-53])
def test_no_chance_draws_a_removed_token(chance: float, monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(chance, dtype=torch.float64))
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 2.0, -math.inf]])
    assert int(draw(logits, [torch.Generator()])) == (3 if chance == 0.0 else 1)


def test_greedy_takes_the_largest_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    assert sample(torch.tensor([[1.0, 3.0, 2.0]]), GREEDY, [[]], [generator]).tolist() == [1]
    assert torch.equal(generator.get_state(), state)
    penalised = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert sample(torch.tensor([[1.0, 3.0, 2.0]]), penalised, [[1, 1]], [generator]).tolist() == [2]


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (1e-20, 1e-40, 1e-50):
        chosen = Sampling(temperature=temperature)
        assert sample(logits, chosen, [[]], [torch.Generator().manual_seed(6)]).tolist() == [1]


def test_a_token_that_the_tokenizer_does_not_have_is_not_penalised() -> None:
    """A model may have rows for more tokens; their logits are cut off before."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    chosen = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert sample(logits, chosen, [[1, 7]], [torch.Generator()]).tolist() == [2]


def test_the_logits_given_are_left_as_they_are() -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(7))
    before = logits.clone()
    chosen = Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=3.0)
    sample(logits, chosen, [[1], [2, 3]], [torch.Generator(), torch.Generator()])
    assert torch.equal(logits, before)


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(8)).bfloat16()
    seeded = [torch.Generator().manual_seed(9)]
    again = [torch.Generator().manual_seed(9)]
    assert sample(logits, Sampling(), [[]], seeded) == sample(logits.float(), Sampling(), [[]], again)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_are_refused(wrong: float) -> None:
    logits = torch.full((1, 3), wrong)
    with pytest.raises(UserError, match="expected finite logits"):
        sample(logits, Sampling(), [[]], [torch.Generator()])


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-40},
    ],
)
def test_a_setting_outside_its_range_is_named(setting: dict[str, float]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=rf"expected {name} .* got {value}"):
        Sampling(**setting)


def test_the_command_says_the_temperature_that_everything_else_has() -> None:
    from lightwell.cli.generate import generate
    from lightwell.trained import Run

    assert signature(generate).parameters["temperature"].default.default == TEMPERATURE
    assert signature(Run.write).parameters["temperature"].default == TEMPERATURE
