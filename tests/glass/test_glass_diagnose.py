"""Diagnoses of readings made up for the purpose: each sickness by its own evidence, and none without it."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from lightwell.glass.diagnose import EXPLAINED_BY, Readings, diagnose

STEPS = list(range(0, 401, 20))[1:]
MATRICES = ("blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight", "blocks.2.mlp.up.weight")
BLOCKS = ("blocks.0", "blocks.1", "blocks.2")


def healthy_rows():
    """(step, layer, name, value) of a run without any trouble."""
    rows = []
    for k, step in enumerate([1, *STEPS]):
        for matrix in MATRICES:
            rows += [(step, matrix, "weight_rms", 0.02 * (1 + 0.1 * k)), (step, matrix, "update_ratio", 0.01)]
            rows += [(step, matrix, "gradient_rms", 1e-3), (step, matrix, "row_spread", 0.99)]
        for block in BLOCKS:
            rows += [(step, block, "activation_rms", 1.0), (step, block, "backward_rms", 0.01)]
            rows += [(step, f"{block}.mlp/gelu", "saturated", 0.05), (step, f"{block}.mlp/gelu", "dead_units", 0.0)]
            rows += [(step, f"{block}.attn", "attention_entropy", 0.9 - 0.02 * k)]
            rows += [(step, f"{block}.attn", "attention_score_max", 3.0 + 0.5 * k)]
        rows += [(step, "", "noise_small", 8.0), (step, "", "noise_big", 1.0)]
        rows += [(step, "", "noise_small_size", 2.0), (step, "", "noise_big_size", 32.0)]
    return rows


def metrics(loss=lambda s: 2 + 3.5 * math.exp(-s / 80), held_out=lambda s: 2.2 + 3.3 * math.exp(-s / 80)):
    steps = range(1, 401)
    return {
        "loss": [(s, loss(s) + 0.05 * math.sin(s)) for s in steps],
        "lr_scale": [(s, min(1.0, s / 20)) for s in steps],
        "heldout.loss": [(s, held_out(s)) for s in steps if s % 40 == 0],
    }


def made(change=lambda step, layer, name, value: value, events=(), vocab_size=256, **curves):
    rows = [(s, layer, name, change(s, layer, name, v)) for s, layer, name, v in healthy_rows()]
    return diagnose(Readings.of(metrics(**curves), rows, events, vocab_size))


def only(diagnosis):
    (finding,) = diagnosis.findings
    return finding


def test_a_healthy_run_is_called_healthy():
    found = made()
    assert found.healthy
    assert not found.too_early
    assert "Healthy" in str(found)
    # |G|^2 = (32 * 1 - 2 * 8) / 30, noise = 7 / (1/2 - 1/32)
    assert found.noise_scale == pytest.approx(7 / (1 / 2 - 1 / 32) / (16 / 30))


def test_a_young_run_is_too_early_to_tell():
    rows = [row for row in healthy_rows() if row[0] <= 20]
    found = diagnose(Readings.of({"loss": [(1, 5.5), (2, 5.4)]}, rows, vocab_size=256))
    assert found.too_early
    assert not found.healthy
    assert "Too early" in str(found)
    assert diagnose(Readings.of({}, [])).too_early


def test_rate_too_high_is_what_was_in_order_at_first():
    def ran_away(step, layer, name, value):
        if name == "weight_rms" and step > 40:
            return 0.02 * 30
        if name == "attention_entropy" and step > 60:
            return 0.2
        return value

    finding = only(made(ran_away))
    assert (finding.sickness, finding.since, finding.until) == ("rate_too_high", 80, None)
    assert "30 times" in finding.what()
    assert only(made(loss=lambda s: 5 - s / 100 if s < 200 else 6.0)).sickness == "diverged"


def test_large_weights_alone_are_no_sickness():
    assert made(lambda s, layer, name, v: v * s if name == "weight_rms" else v).healthy


def test_rate_too_low():
    still = {"loss": lambda s: 5.5 - s / 1000, "held_out": lambda s: 5.5 - s / 1000}
    finding = only(made(lambda s, layer, name, v: 1e-4 if name == "update_ratio" else v, **still))
    assert finding.sickness == "rate_too_low"
    assert "4% of their own size" in finding.what()
    assert made(lambda s, layer, name, v: 1e-4 if name == "update_ratio" else v).healthy  # the loss falls all the same


@pytest.mark.parametrize(
    ("name", "value", "sickness"),
    [
        ("dead_units", 0.7, "dead_units"),
        ("saturated", 0.95, "saturation"),
        ("attention_entropy", 0.02, "attention_collapse"),
    ],
)
def test_layers_that_stopped_learning(name, value, sickness):
    def sick(step, layer, row, v):
        return value if row == name and layer.startswith("blocks.1") and step >= 100 else v

    finding = only(made(sick))
    assert (finding.sickness, finding.since) == (sickness, 100)
    assert finding.layers[0].startswith("blocks.1")
    assert finding.sure > 0.7
    assert made(lambda s, layer, row, v: value if row == name and s in (100, 200) else v).healthy  # a passing moment


@pytest.mark.parametrize(("gain", "sickness"), [(1e5, "exploding_gradients"), (1e-5, "vanishing_gradients")])
def test_gradients_on_their_way_back(gain, sickness):
    def sick(step, layer, name, value):
        return value * gain if name == "backward_rms" and layer == "blocks.0" else value

    finding = only(made(sick))
    assert (finding.sickness, finding.layers) == (sickness, ["blocks.0", "blocks.2"])
    passing = only(made(lambda s, layer, n, v: sick(s, layer, n, v) if s <= 60 else v))
    assert (passing.since, passing.until) == (1, 60)
    assert "then it passed" in passing.when()


def test_bad_initialisation():
    finding = only(made(loss=lambda s: 2 + 30 * math.exp(-s / 5)))
    assert finding.sickness == "bad_initialisation"
    assert "5.545" in finding.what()
    alike = only(made(lambda s, layer, name, v: 0.0 if name == "row_spread" and s < 200 else v))
    assert alike.sickness == "units_alike"
    assert made(lambda s, layer, name, v: 0.0 if name == "row_spread" and s == 1 else v).healthy  # zeros at first


def test_leaks_and_repetition():
    assert only(made(loss=lambda s: 5 * math.exp(-s / 10), held_out=lambda s: 0.02)).sickness == "leak"
    finding = only(made(loss=lambda s: 5 * math.exp(-s / 60) + 0.3, held_out=lambda s: 3 + abs(s - 120) / 200))
    assert (finding.sickness, finding.since) == ("repeated_data", 120)


def test_numbers_that_are_none():
    events = [{"kind": "nonfinite", "step": s, "details": {"first_bad_layer": "blocks.1.mlp"}} for s in (50, 60, 70)]
    finding = only(made(events=events))
    assert (finding.sickness, finding.since, finding.until) == ("not_finite", 50, 70)
    assert finding.layers == ["blocks.1.mlp"]


def test_what_follows_from_another_is_left_to_it():
    still = {"loss": lambda s: 5.5 - s / 1000, "held_out": lambda s: 5.5 - s / 1000}

    def both(step, layer, name, value):
        return {"update_ratio": 1e-4, "saturated": 0.99}.get(name, value)

    assert only(made(both, **still)).sickness == "saturation"
    assert "saturation" in EXPLAINED_BY["rate_too_low"]


def test_a_diagnosis_is_told_in_words_and_in_json():
    found = made(lambda s, layer, name, v: 0.8 if name == "dead_units" else v)
    text = str(found)
    for part in ("Dead units", "since step 1", "probably (90%)", "Where: blocks.0.mlp/gelu", "To do:", "sequences"):
        assert part in text
    assert "{" not in text
    again = json.loads(json.dumps(found.to_dict()))
    assert again["healthy"] is False
    assert again["findings"][0]["advice"]


def test_readings_come_from_a_runs_database(tmp_path):
    from lightwell.store.database import RunDatabase

    with RunDatabase(tmp_path / "run.sqlite") as database:
        for step, loss in metrics()["loss"]:
            database.add_metrics(step, {"loss": loss})
        rows = healthy_rows()
        for step in {row[0] for row in rows}:
            database.add_layers(step, [row[1:] for row in rows if row[0] == step])
        database.add_event(9, "nonfinite", {"first_bad_layer": "head"})
        found = diagnose(Readings.of_run(database, 256))
    assert only(found).layers == ["head"]
    assert found.pulses == len(STEPS) + 1


def test_real_runs_of_a_few_steps(monkeypatch):
    """Two runs of the laboratory of benchmarks/glass_recall.py, shortened: one healthy, one ill."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    lab = importlib.import_module("glass_recall")
    torch.set_num_threads(1)
    healthy, sick = lab.run("healthy relu net", 1, steps=48), lab.run("relu net, gain 4", 1, steps=48)
    assert {finding.sickness for finding in diagnose(healthy).findings} <= {"rate_too_low"}
    assert "exploding_gradients" in {finding.sickness for finding in diagnose(sick).findings}
