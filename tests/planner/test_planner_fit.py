"""Whether a step fits into memory is asked of a process of its own where the estimate comes near to what is free."""

import subprocess
import sys

import pytest
import torch

from lightwell.config.run import changed, parse
from lightwell.planner import fit, probe
from lightwell.planner.step_time import Trial
from lightwell.runtime.device import Device

CPU = Device(torch.device("cpu"), torch.float32)
SMALL = parse(
    {
        "model": {"n_layers": 2, "emb_dim": 64, "n_heads": 2, "context_length": 64, "vocab_size": 512},
        "train": {"batch_size": 12},
    }
)


@pytest.fixture
def asked(monkeypatch):
    """The micro-batches that were tried; each row takes a million bytes."""
    rows: list[int] = []

    def takes(config, threads, timeout):
        rows.append(fit.rows_at_once(config))
        return 10**6 * rows[-1]

    monkeypatch.setattr(fit, "peak_of_a_step", takes)
    monkeypatch.setattr(fit, "step_memory", lambda config, rows, device: {"total": 10**6 * rows})
    monkeypatch.setattr(fit, "saving_copy", lambda config: 0)
    return rows


def free(monkeypatch, n):
    monkeypatch.setattr(fit, "free_bytes", lambda: n)


def test_a_step_that_fits_stays_whole(asked, monkeypatch):
    free(monkeypatch, 13 * 10**6)
    assert fit.tried_in_memory(SMALL, CPU, 0.1, limit=30) == SMALL
    assert asked == [12]


def test_one_that_does_not_is_halved_and_tried_again(asked, monkeypatch):
    free(monkeypatch, 7 * 10**6)
    assert fit.tried_in_memory(SMALL, CPU, 0.1, limit=30) == changed(SMALL, train={"micro_batch_size": 6})
    assert asked == [12, 6]


def test_nothing_is_tried_where_memory_is_plenty_or_time_is_short(asked, monkeypatch):
    free(monkeypatch, 10**9)
    assert fit.tried_in_memory(SMALL, CPU, 0.1, limit=30) == SMALL
    free(monkeypatch, 7 * 10**6)
    assert fit.tried_in_memory(SMALL, CPU, 0.1, limit=3) == SMALL
    free(monkeypatch, None)
    assert fit.tried_in_memory(SMALL, CPU, 0.1, limit=30) == SMALL
    assert asked == []


def test_a_process_that_dies_of_it_is_an_answer(monkeypatch):
    monkeypatch.setattr(fit, "peak_of_a_step", lambda *_, **__: None)
    free(monkeypatch, 100)
    halved = fit.tried_in_memory(SMALL, CPU, 0.1, limit=30)
    assert halved.train.micro_batch_size == 3


def test_a_real_step_in_a_process_of_its_own_tells_its_memory():
    few = probe.peak_of_a_step(changed(SMALL, train={"batch_size": 2}), 1, timeout=60)
    many = probe.peak_of_a_step(changed(SMALL, train={"batch_size": 512}), 1, timeout=60)
    assert few is not None
    assert many is not None
    assert many - few > 200e6  # the logits alone are 67 MB in float32, and so are their gradients


def instead(monkeypatch, code):
    """The process that makes a step does this instead."""
    real = subprocess.run
    monkeypatch.setattr(probe.subprocess, "run", lambda _, **how: real([sys.executable, "-c", code], **how))


def test_a_process_that_the_system_ends_has_no_peak(monkeypatch):
    instead(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert probe.peak_of_a_step(SMALL, 1, timeout=20) is None


def test_one_that_takes_too_long_says_nothing_of_memory(monkeypatch):
    """A busy machine: the micro-batch stays what the estimate allows."""
    instead(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        probe.peak_of_a_step(SMALL, 1, timeout=0.5)
    monkeypatch.setattr(fit, "STARTS", 0.1)
    free(monkeypatch, 10**6)
    assert fit.tried_in_memory(SMALL, CPU, 0.01, limit=1) == SMALL


def test_a_trial_does_what_a_step_of_the_run_will_do(monkeypatch):
    """In as many micro-batches, and with activations computed twice where that was asked for."""
    config = changed(SMALL, runtime={"checkpoint_activations": True})
    trial = Trial(config, CPU, 12, 4)
    assert trial.replicas.model.checkpoint_activations
    forward, rows = trial.replicas.forward, []

    def counted(ids, targets):
        rows.append(len(ids))
        return forward(ids, targets)

    trial.replicas.forward = counted
    trial.step()
    assert rows == [4, 4, 4]
    assert trial.tokens == 12 * 64
    assert fit.step_memory(config, 12, CPU)["total"] < fit.step_memory(SMALL, 12, CPU)["total"]
