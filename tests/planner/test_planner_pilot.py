"""A small model tries the text before the planner predicts; without the time for it, the planner does without."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightwell.config.run import parse
from lightwell.data.prepare import prepare
from lightwell.planner import pilot
from lightwell.planner.climb import TRIAL_SHARE
from lightwell.planner.pilot import look_at, with_pilot
from lightwell.planner.predict import WITH_PILOT, predict_bits_per_byte
from lightwell.planner.text import PILOT_TOKENS, describe, typical_text
from lightwell.runtime.device import choose_device
from lightwell.training.pilot import run_pilot, steps_of

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = choose_device("cpu", "float32")
SIZES = {"n_layers": 1, "emb_dim": 16, "n_heads": 2, "context_length": 16, "tie_embeddings": False}
SENTENCE = "She looks at the model, and the model looks back.\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "dataset"
    return prepare([GOLDEN / "well.txt"], folder, tokenizer="bytes", val=[GOLDEN / "well-held-out.txt"])


@pytest.fixture
def small(monkeypatch):
    """A pilot that this short text is long enough for."""
    monkeypatch.setattr(pilot, "PILOT_TOKENS", 2000)
    monkeypatch.setattr(pilot, "SHAPE", SIZES)


def config_of(dataset):
    return parse({"model": SIZES | {"vocab_size": dataset.tokenizer.vocab_size}, "train": {"batch_size": 4}})


def test_a_pilot_learns_and_tells_the_same_each_time(tmp_path):
    text, held_out = tmp_path / "text.txt", tmp_path / "held-out.txt"
    text.write_text(SENTENCE * 200)
    held_out.write_text(SENTENCE * 20)
    dataset = prepare([text], tmp_path / "dataset", tokenizer="bytes", val=[held_out])
    config = config_of(dataset)
    short, long, again = (run_pilot(dataset, config, n, CPU, eval_tokens=500) for n in (64, 6400, 6400))
    assert long.loss < 0.5 * short.loss
    assert again.loss == long.loss
    assert steps_of(config, 6400) == 100
    assert steps_of(config, 6401) == 101


def test_each_batch_and_the_new_model_can_be_seen(dataset):
    seen = []
    run_pilot(
        dataset, config_of(dataset), 256, CPU, eval_tokens=100,
        change=lambda model: seen.append(sum(p.numel() for p in model.parameters())),
        before_step=lambda replicas, batch: seen.append(tuple(batch.ids.shape)),
    )  # fmt: skip
    assert seen[1:] == [(4, 16)] * 4
    assert seen[0] > 0


def test_a_pilot_that_would_take_too_long_is_given_up(dataset, small):
    assert run_pilot(dataset, config_of(dataset), 10**9, CPU, eval_tokens=100, limit=0.5) is None
    text = describe(dataset)
    assert with_pilot(text, dataset, CPU, limit=1e-9) == text


def test_no_pilot_without_minutes_or_for_a_short_text(dataset):
    assert len(dataset.train) < PILOT_TOKENS
    assert with_pilot(describe(dataset), dataset, CPU).pilot is None
    assert look_at(dataset, CPU, None).pilot is None


def test_a_budget_of_minutes_gets_one(dataset, small):
    text = look_at(dataset, CPU, 60 / TRIAL_SHARE)
    assert 0 < text.pilot < 10
    assert replace(text, pilot=None) == describe(dataset)


def test_random_numbers_are_left_alone(dataset, small):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with_pilot(describe(dataset), dataset, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_predictions_follow_the_pilot():
    text = typical_text(2_000_000)
    usual, worse = (replace(text, pilot=pilot) for pilot in (1.5, 1.65))
    assert text.learned == 1.0
    assert worse.learned == pytest.approx(1.1 * usual.learned)
    predicted = [predict_bits_per_byte(1_000_000, 2_000_000, one) for one in (text, usual, worse)]
    assert all(map(math.isfinite, predicted))
    assert predicted[2] == pytest.approx(predicted[1] * 1.1**WITH_PILOT.rho)
