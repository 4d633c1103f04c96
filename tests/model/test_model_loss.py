"""The loss by pieces against the textbook form: values, both gradients, and every way it is called."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightwell.model import loss as subject
from lightwell.model.loss import IGNORE, PiecewiseCrossEntropy, cross_entropy_sum, piece_rows, plain_cross_entropy_sum


def inputs(n: int, c: int, v: int, dtype: torch.dtype = torch.float64, ignored: float = 0.2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * 10_000 + c * 100 + v)
    hidden = torch.randn(n, c, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, c, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = IGNORE
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), c=st.integers(1, 9), v=st.integers(1, 50), rows=st.integers(1, 45), scale=st.floats(-3, 3))
def test_pieces_equal_the_textbook_form(n: int, c: int, v: int, rows: int, scale: float) -> None:
    hidden, weight, targets = inputs(n, c, v)
    plain = plain_cross_entropy_sum(hidden, weight, targets)
    pieces = PiecewiseCrossEntropy.apply(hidden, weight, targets, rows)
    torch.testing.assert_close(pieces, plain, rtol=1e-12, atol=1e-12)
    for got, expected in zip(gradients(scale * pieces, hidden, weight), gradients(scale * plain, hidden, weight)):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    hidden, weight, targets = inputs(7, 3, 5)
    assert torch.autograd.gradcheck(lambda h, w: PiecewiseCrossEntropy.apply(h, w, targets, 3), (hidden, weight))


def test_size_decides_and_plain_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs(20, 4, 11)
    monkeypatch.setattr(subject, "piece_rows", lambda *_, **__: 8)
    assert "Piecewise" in type(cross_entropy_sum(hidden, weight, targets)[0].grad_fn).__name__
    assert "Piecewise" not in type(cross_entropy_sum(hidden, weight, targets, plain=True)[0].grad_fn).__name__
    assert "Piecewise" not in type(cross_entropy_sum(hidden[:8], weight, targets[:8])[0].grad_fn).__name__


def test_a_piece_is_about_a_cache_and_never_a_few_rows() -> None:
    assert piece_rows(8192, 128) * 8192 * 4 == subject.PIECE_BYTES["cpu"]
    assert piece_rows(8192, 128, "cuda") * 8192 * 4 == subject.PIECE_BYTES["cuda"]
    assert piece_rows(1_000_000, 768) == 384


@pytest.mark.parametrize("rows", [4, 100])
def test_counts_the_targets_that_count(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "piece_rows", lambda *_, **__: rows)
    hidden, weight, targets = inputs(15, 4, 9)
    loss, n = cross_entropy_sum(hidden, weight, targets)
    assert (loss.shape, n.shape, n.dtype) == ((), (), torch.int64)
    assert n.item() == sum(target != IGNORE for target in targets.tolist()) < 15
    keep = targets != IGNORE
    expected, _ = cross_entropy_sum(hidden[keep], weight, targets[keep], plain=True)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [4, 100])
def test_all_ignored_is_a_loss_of_zero_with_zero_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "piece_rows", lambda *_, **__: rows)
    hidden, weight, targets = inputs(15, 4, 9, ignored=2.0)
    loss, n = cross_entropy_sum(hidden, weight, targets)
    assert (loss.item(), n.item()) == (0.0, 0)
    assert all(bool((gradient == 0).all()) for gradient in gradients(loss, hidden, weight))


def test_without_gradients_the_pieces_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "piece_rows", lambda *_, **__: 4)
    hidden, weight, targets = inputs(15, 4, 9)
    with torch.no_grad():
        loss, _ = cross_entropy_sum(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_cross_entropy_sum(hidden, weight, targets).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_the_gradients_that_are_asked_for(frozen: str) -> None:
    hidden, weight, targets = inputs(15, 4, 9)
    leaf, other = (weight, hidden) if frozen == "hidden" else (hidden, weight)
    other.requires_grad_(False)
    loss = PiecewiseCrossEntropy.apply(hidden, weight, targets, 4)
    expected = gradients(plain_cross_entropy_sum(hidden, weight, targets), leaf)[0]
    loss.backward()
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=1e-12)
    assert other.grad is None


def test_used_twice_and_walked_back_twice() -> None:
    """Two losses of one weight add their gradients; a graph kept for a second backward pass gives the same again."""
    hidden, weight, targets = inputs(15, 4, 9)
    both = PiecewiseCrossEntropy.apply(hidden, weight, targets, 4) + PiecewiseCrossEntropy.apply(
        2 * hidden, weight, targets, 5
    )
    plain = plain_cross_entropy_sum(hidden, weight, targets) + plain_cross_entropy_sum(2 * hidden, weight, targets)
    expected = gradients(plain, hidden, weight)
    for _ in range(2):
        for got, wanted in zip(torch.autograd.grad(both, (hidden, weight), retain_graph=True), expected):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_huge_logits_stay_finite() -> None:
    hidden = torch.full((6, 1), 1.0, dtype=torch.float32, requires_grad=True)
    weight = torch.tensor([[3e4], [0.0], [-3e4]], requires_grad=True)
    loss = PiecewiseCrossEntropy.apply(hidden, weight, torch.tensor([0, 1, 2, 0, 1, 2]), 4)
    assert loss.item() == pytest.approx(2 * (0 + 3e4 + 6e4))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(loss, hidden, weight))


def test_float32_is_as_exact_as_the_textbook_form() -> None:
    hidden, weight, targets = inputs(300, 16, 101, torch.float32)
    pieces = PiecewiseCrossEntropy.apply(hidden, weight, targets, 32)
    exact = plain_cross_entropy_sum(hidden.double(), weight.double(), targets)
    assert pieces.dtype == torch.float32
    assert abs(pieces.item() / exact.item() - 1) < 1e-6
    for got, expected in zip(gradients(pieces, hidden, weight), gradients(exact, hidden, weight)):
        assert ((got - expected).abs().max() / expected.abs().max()).item() < 2e-6


@pytest.mark.parametrize("setting", ["autocast", "bfloat16 weights"])
def test_bfloat16_products_with_a_wide_softmax(setting: str) -> None:
    """As near to the exact result as bfloat16 products allow, and the sum over many pieces no worse than over one."""
    hidden, weight, targets = inputs(512, 32, 64, torch.float32)
    if setting == "bfloat16 weights":
        hidden, weight = (leaf.detach().bfloat16().requires_grad_() for leaf in (hidden, weight))
    exact = plain_cross_entropy_sum(hidden.double(), weight.double(), targets)
    expected = gradients(exact, hidden, weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
        one, many = (PiecewiseCrossEntropy.apply(hidden, weight, targets, rows) for rows in (512, 8))
    for loss in (one, many):
        assert loss.dtype == torch.float32
        assert abs(loss.item() / exact.item() - 1) < 2e-3
        for got, wanted, leaf in zip(gradients(loss, hidden, weight), expected, (hidden, weight)):
            assert got.dtype == leaf.dtype
            assert ((got - wanted).norm() / wanted.norm()).item() < 1e-2


def test_a_uniform_model_loses_log_v() -> None:
    loss, n = cross_entropy_sum(torch.zeros(10, 4), torch.randn(50, 4), torch.arange(10))
    assert loss.item() / n.item() == pytest.approx(math.log(50), rel=1e-6)
