"""torch.compile is tried where there is time for it, and used where more steps then fit into the rest."""

import pytest
import torch

from lightwell.config.run import changed, parse
from lightwell.planner import compiling
from lightwell.runtime.device import Device

CPU = Device(torch.device("cpu"), torch.float32)
CONFIG = parse(
    {
        "model": {"emb_dim": 32, "n_heads": 2, "n_layers": 2, "context_length": 16, "vocab_size": 300},
        "train": {"batch_size": 4},
    }
)


@pytest.fixture
def found(monkeypatch):
    """What a trial finds: set `found[:]` to (seconds to compile, seconds of a step)."""
    result = [40.0, 0.5]
    monkeypatch.setattr(compiling, "can_compile", lambda device: True)
    monkeypatch.setattr(compiling, "measure_compiled", lambda config, device: tuple(result))
    return result


def test_it_is_used_where_more_steps_fit_after_its_cost(found):
    faster = compiling.try_compile(CONFIG, CPU, 1.0, 3600.0)
    assert faster.pays
    assert faster.step_seconds == 0.5
    assert "40 s to compile" in faster.reasons[0]
    found[:] = [40.0, 0.995]
    slower = compiling.try_compile(CONFIG, CPU, 1.0, 3600.0)
    assert not slower.pays, "the gain of 18 s is less than the 40 s of compiling"
    assert slower.step_seconds == 1.0


def test_it_is_not_tried_in_a_short_budget_or_when_the_user_has_decided(found, monkeypatch):
    def never(config, device):
        raise AssertionError("it was tried")

    monkeypatch.setattr(compiling, "measure_compiled", never)
    assert not compiling.try_compile(CONFIG, CPU, 1.0, 300.0).pays
    for asked in (True, False):
        fixed = changed(CONFIG, runtime={"compile": asked})
        assert compiling.try_compile(fixed, CPU, 1.0, 3600.0).pays is asked


def test_a_compiler_that_fails_is_said_and_does_without(found, monkeypatch):
    def fails(config, device):
        raise RuntimeError("no header files")

    monkeypatch.setattr(compiling, "measure_compiled", fails)
    failed = compiling.try_compile(CONFIG, CPU, 1.0, 3600.0)
    assert not failed.pays
    assert "RuntimeError" in failed.reasons[0]


def test_a_trial_times_steps_after_the_first(monkeypatch):
    monkeypatch.setattr("torch.compile", lambda model, **options: model)
    cost, seconds = compiling.measure_compiled(CONFIG, CPU, rounds=1)
    assert cost > 0
    assert seconds > 0
