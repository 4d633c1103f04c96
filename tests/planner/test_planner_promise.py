"""What was predicted before the first step stands beside the outcome: in the run, in the library, on the screen."""

import json
from pathlib import Path

import pytest

import lightwell
from lightwell.cli.result import said_of_prediction
from lightwell.inspection import describe_runs
from lightwell.model.count import parameters_of_blocks
from lightwell.planner.predict import predict_bits_per_byte
from lightwell.planner.text import describe
from lightwell.store.checkpoints import list_checkpoints, step_of
from lightwell.store.database import RunDatabase

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"n_layers": 1, "emb_dim": 16, "n_heads": 2, "context_length": 128}
SETTINGS = [*(f"model.{key}={value}" for key, value in SIZES.items()), "tokenizer.kind=bytes", "train.batch_size=4"]


def train(out, **request):
    request["settings"] = SETTINGS + request.get("settings", [])
    return lightwell.pretrain(GOLDEN / "well.txt", val=GOLDEN / "well-held-out.txt", out=out, device="cpu", **request)


def events(run, kind):
    with RunDatabase(run.path / "run.sqlite", read_only=True) as database:
        return database.events(kind)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", steps=8)


def test_the_prediction_is_stored_before_the_first_step(run):
    (plan,) = events(run, "plan")
    assert plan["step"] == 0
    model = run.model_config
    sizes = parameters_of_blocks(model), 8 * 4 * 128, describe(run.dataset()), model.context_length
    expected = predict_bits_per_byte(*sizes)
    assert plan["details"]["bits_per_byte"] == pytest.approx(expected)
    assert plan["time"] < events(run, "steps")[0]["time"] <= events(run, "outcome")[0]["time"]


def test_the_outcome_is_measured_on_the_held_out_part_and_compared(run):
    outcome = run.outcome()
    assert outcome["heldout"]["bits_per_byte"] == pytest.approx(run.evaluate().bits_per_byte, rel=0.02)
    predicted = outcome["predicted"]
    assert predicted["off"] == pytest.approx(outcome["heldout"]["bits_per_byte"] / predicted["bits_per_byte"] - 1)
    (row,) = describe_runs([run.path])
    assert row["predicted"] == predicted
    assert row["heldout"]["bits_per_byte"] == outcome["heldout"]["bits_per_byte"]
    json.dumps(outcome, allow_nan=False)


def test_it_is_said_in_a_sentence():
    said = said_of_prediction({"bits_per_byte": 2.0, "off": 0.05})
    assert said == "Predicted before the first step: 2.000 bits per byte; the outcome is 5.0% above that."
    assert said_of_prediction({"bits_per_byte": 2.0, "off": -0.05}).endswith("5.0% below that.")
    assert said_of_prediction({"bits_per_byte": None, "off": None}) is None


def test_the_best_checkpoint_is_what_the_run_gives_afterwards(tmp_path):
    """With a rate that rises beyond all bounds, the first evaluation is the best."""
    run = train(
        tmp_path / "run",
        steps=12,
        settings=[
            "model.tie_embeddings=true",  # from there it can only go down for a moment
            "optimizer.learning_rate=100.0",
            "optimizer.beta1=0.9",
            "optimizer.muon_learning_rate=100.0",
            "train.eval_every=3",
            "schedule.name=constant",
            "schedule.warmup=1.0",
        ],
    )
    losses = dict(run.metrics["heldout.loss"])
    best = min(losses, key=lambda step: losses[step])
    assert best == 3, "otherwise there is nothing to see here"
    assert run.step == best
    assert step_of(run.checkpoint) == best
    assert run.outcome()["steps"] == step_of(list_checkpoints(run.path)[-1]) == 12
    lightwell.resume(run.path, extend_steps=2)
    again = lightwell.load(run.path, device="cpu")
    assert again.outcome()["steps"] == 14


def test_a_budget_of_minutes_is_planned_and_kept_in_the_run(tmp_path):
    run = train(tmp_path / "run", minutes=0.05)
    (plan,) = events(run, "plan")
    assert plan["details"]["step_seconds"] > 0
    assert run.config.budget.most_tokens
    assert run.config.runtime.compile is False
    assert run.outcome()["predicted"]["bits_per_byte"] == plan["details"]["bits_per_byte"]
