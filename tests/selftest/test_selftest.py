"""The self-test finds what is wrong, and nothing where nothing is."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from lightwell.cli.main import run
from lightwell.runtime.device import Device
from lightwell.selftest import check as selftest_check
from lightwell.selftest import steps
from lightwell.selftest.check import advice, selftest
from lightwell.selftest.operations import OPERATIONS, Operation, Row, check, check_operations
from lightwell.selftest.resume import difference
from lightwell.selftest.steps import check_family
from lightwell.store.checkpoint import write_checkpoint

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_operation_is_right_here(dtype):
    rows = check_operations(Device(torch.device("cpu"), dtype))
    assert len(rows) == len(OPERATIONS) >= 10
    assert [row.name for row in rows if not row.good] == []
    assert all(row.gradient_error is not None for row in rows[:-1])


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_right_here(family, dtype):
    rows = check_family(family, Device(torch.device("cpu"), dtype))
    assert [row for row in rows if not row.good] == []


def test_a_wrong_kernel_is_found():
    def slightly_wrong(x):
        return F.silu(x) + (1e-3 if x.dtype == torch.float32 else 0.0)

    assert not check(Operation("silu", slightly_wrong, ((4, 4),)), CPU).good
    assert not check(Operation("nan", lambda x: x * math.nan if x.dtype == torch.float32 else x, ((4, 4),)), CPU).good
    wrong_gradient = Operation("x", lambda x: x + (x - x.detach()) if x.dtype == torch.float32 else x, ((4, 4),))
    row = check(wrong_gradient, CPU)
    assert row.error < 1e-6
    assert not row.good


def test_a_wrong_step_is_found(monkeypatch):
    real = steps.train_step

    def off(replicas, optimizer, batch, **options):
        if options["device"].dtype == torch.float32:
            replicas.model.tok_emb.weight.register_hook(lambda gradient: gradient * 1.001)
        return real(replicas, optimizer, batch, **options)

    monkeypatch.setattr(steps, "train_step", off)
    gradients, _ = check_family("modern", CPU)
    assert not gradients.good


def test_the_bad_path_is_named():
    bf16 = Device(torch.device("cpu"), torch.bfloat16)
    assert advice([Row("modern: loss, compiled", 1.0, None, 0.1), Row("fine", 0.0, None, 0.1)], CPU) == [
        "--set runtime.compile=false"
    ]
    assert advice([Row("attention", 1.0, None, 0.1)], bf16) == ["--set runtime.dtype=float32"]
    assert advice([Row("attention", 0.0, None, 0.1)], bf16) == []


def test_a_difference_between_two_runs_is_told(tmp_path):
    moments = {"exp_avg.w": torch.ones(2)}
    for name, weight, step in (("a", 1.0, 5), ("b", 1.0, 5), ("c", 1.5, 5), ("d", 1.0, 6)):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, step, {"w": torch.tensor([1.0, weight])}, moments, {})
    assert difference(tmp_path / "a", tmp_path / "b") is None
    assert difference(tmp_path / "a", tmp_path / "c") == "the weights differ in w by up to 0.5"
    assert "steps 5 and 6" in difference(tmp_path / "a", tmp_path / "d")


@pytest.mark.parametrize(("resume", "code"), [(None, 0), ("the weights differ in w", 4)])
def test_the_command_says_its_verdict(monkeypatch, capsys, resume, code):
    monkeypatch.setattr(selftest_check, "check_resume", lambda *_: resume)
    assert run(["selftest", "--device", "cpu"]) == code
    shown = capsys.readouterr()
    assert "matrix product" in shown.out
    assert ("BAD: the weights differ" in shown.out) == bool(resume)
    assert ("does not compute what it should" in shown.err) == bool(resume)
    run(["selftest", "--device", "cpu", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[0])
    assert found["good"] is (resume is None)
    assert {"name", "error", "gradient_error", "tolerance", "good"} <= found["rows"][0].keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_selftest():
    verdict = selftest(CPU)
    assert verdict.good, verdict
