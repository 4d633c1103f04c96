"""A kernel call that is kept can be run again: the same numbers, others at some places, another precision."""

from __future__ import annotations

import pytest
import torch
from glass_rule_checks import Recorder, by_autograd
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from lightwell.errors import TraceError
from lightwell.glass.attention import attention_probabilities
from lightwell.glass.call import Call, base_name, is_random, tensors_of, written_arguments
from lightwell.glass.rules import find

aten = torch.ops.aten


def captured(function, *inputs):  # type: ignore[no-untyped-def]
    with Recorder() as seen:
        function(*inputs)
    return seen.calls


def test_base_names_drop_overload_and_underscore() -> None:
    assert base_name(aten.add_.Tensor) == "add"
    assert base_name(aten._softmax.default) == "_softmax"
    assert base_name(aten.__and__.Tensor) == "__and__"


def test_written_arguments_are_those_of_the_schema() -> None:
    assert written_arguments(aten.add_.Tensor) == {"self"}
    assert written_arguments(aten.add.out) == {"out"}
    assert written_arguments(aten.add.Tensor) == frozenset()


def test_tensors_of_any_result() -> None:
    a, b = torch.ones(1), torch.ones(2)
    assert tensors_of(a) == (a,)
    assert tensors_of([a, (b, 3), None]) == (a, b)
    assert tensors_of(None) == ()


def test_paths_name_every_tensor() -> None:
    x, y, w = torch.ones(2), torch.zeros(2), torch.ones(2, dtype=torch.int64)
    cat = Call.run(aten.cat.default, [x, y])
    assert list(cat.tensor_inputs()) == [(0, 0), (0, 1)]
    assert cat.get((0, 1)) is y
    add = Call.run(aten.add.Tensor, x, other=w)
    assert list(add.tensor_inputs()) == [(0,), ("other",)]
    assert list(add.float_inputs()) == [(0,)]
    assert add.path("self") == (0,)
    assert add.path("other") == ("other",)
    assert add.get(("alpha",)) == 1


def test_arguments_by_name_have_their_defaults() -> None:
    named = Call.run(aten.add.Tensor, torch.ones(2), torch.ones(2)).named()
    assert named["alpha"] == 1
    assert set(named) == {"self", "other", "alpha"}
    assert Call.run(aten.clamp.default, torch.ones(2), 0.0).named()["max"] is None


def test_a_buffer_for_the_result_has_no_gradient() -> None:
    x = torch.ones(2)
    call = Call.run(aten.add.out, x, x, out=torch.zeros(2))
    assert ("out",) in call.tensor_inputs()
    assert ("out",) not in call.float_inputs()


def test_replay_gives_the_same_and_other_inputs_other_outputs() -> None:
    x, w = torch.randn(2, 3), torch.randn(3, 2)
    call = Call.run(aten.mm.default, x, w)
    assert torch.equal(call.replay()[0], call.outputs[0])
    assert torch.equal(call.replay({(0,): 2 * x})[0], (2 * x) @ w)
    assert call.get((0,)) is x


def test_replay_of_an_in_place_operation_writes_to_nothing_captured() -> None:
    x = torch.tensor([1.0, 2.0])
    (call,) = captured(lambda x: x.mul_(3.0), x)
    assert torch.equal(call.args[0], torch.tensor([1.0, 2.0]))
    assert torch.equal(call.outputs[0], torch.tensor([3.0, 6.0]))
    for _ in range(2):
        assert torch.equal(call.replay()[0], torch.tensor([3.0, 6.0]))
    assert torch.equal(call.args[0], torch.tensor([1.0, 2.0]))


def test_replay_is_seen_by_no_mode_and_no_autograd() -> None:
    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Counter.count += 1
            return op(*args, **(kwargs or {}))

    x = torch.ones(2, requires_grad=True)
    call = Call.run(aten.mul.Tensor, x, x)
    with Counter():
        (z,) = call.replay()
    assert Counter.count == 0
    assert not z.requires_grad


def test_dropout_replays_with_its_mask() -> None:
    x = torch.ones(1000)
    call = Call.run(aten.native_dropout.default, x, 0.5, True)
    kept = call.outputs[1]
    assert 300 < int(kept.sum()) < 700
    assert torch.equal(call.replay({(0,): 3 * x})[0], 6.0 * kept)


def test_random_numbers_replay_as_they_were() -> None:
    (call,) = (c for c in captured(lambda: torch.rand(5)) if c.name == "rand")
    assert torch.equal(call.replay()[0], call.outputs[0])
    x = torch.empty(5)
    (call,) = captured(lambda x: x.bernoulli_(0.5), x)
    assert torch.equal(call.replay()[0], call.outputs[0])
    assert is_random(aten.empty_like.default)
    assert not is_random(aten.mul.Tensor)


def test_functional_dropout_replays_call_by_call() -> None:
    x = torch.ones(50)
    torch.manual_seed(0)
    calls = captured(lambda x: functional.dropout(x, 0.5), x)
    for call in calls:
        torch.testing.assert_close(
            call.replay(), call.outputs, rtol=0, atol=0, equal_nan=True
        )  # fresh memory: any bits


def test_rrelu_replays_with_its_slopes() -> None:
    x = torch.tensor([-1.0, -2.0, 3.0])
    call = Call.run(aten.rrelu_with_noise.default, x, torch.zeros(3), 0.1, 0.4, True)
    assert torch.allclose(call.replay({(0,): 2 * x})[0], 2 * call.outputs[0])


def test_batch_norm_replays_without_moving_its_statistics() -> None:
    mean, var = torch.zeros(2), torch.ones(2)
    args = (torch.randn(4, 2), None, None, mean, var, True, 0.5, 1e-5)
    call = Call(aten.native_batch_norm.default, args, {}, ())
    call.replay()
    assert torch.equal(mean, torch.zeros(2))
    assert torch.equal(var, torch.ones(2))


def test_to_casts_what_floats_and_computes_the_outputs_again() -> None:
    table, ids = torch.randn(5, 3), torch.tensor([1, 4])
    call = Call.run(aten.embedding.default, table, ids).to(torch.float64)
    assert call.get((0,)).dtype == torch.float64
    assert call.get((1,)).dtype == torch.int64
    x = torch.full((1,), 1 / 3)
    exact = Call.run(aten.exp.default, x).to(torch.float64)
    assert exact.outputs[0].item() == pytest.approx(torch.exp(x.double()).item(), rel=1e-15)


def test_to_follows_options_that_name_a_dtype() -> None:
    call = Call.run(aten._to_copy.default, torch.ones(2), dtype=torch.bfloat16).to(torch.float64)
    assert call.outputs[0].dtype == torch.float64
    call = Call.run(aten._to_copy.default, torch.ones(2), dtype=torch.int64).to(torch.float64)
    assert call.outputs[0].dtype == torch.int64


def test_half_precision_softmax_can_be_replayed_in_double() -> None:
    x = torch.randn(3, dtype=torch.bfloat16)
    call = Call(aten._softmax.default, (x, 0, True), {}, (torch.zeros(3),)).to(torch.float64)
    assert torch.allclose(call.outputs[0], x.double().softmax(0))


def test_what_cannot_run_again_is_said() -> None:
    call = Call(aten.mm.default, (torch.ones(2, 3), torch.ones(2, 3)), {}, ())
    with pytest.raises(TraceError, match=r"expected aten\.mm\.default to run again"):
        call.replay()


@pytest.mark.parametrize("masked", ["nothing", "future", "boolean", "added"])
def test_attention_in_parts_is_attention(masked: str) -> None:
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    allowed = torch.ones(3, 3).tril().bool()
    mask = {"boolean": allowed, "added": torch.zeros(3, 3).masked_fill(~allowed, -torch.inf)}.get(masked)
    wide = [t.repeat_interleave(2, dim=1) for t in (k, v)]
    plain = functional.scaled_dot_product_attention(q, *wide, attn_mask=mask, is_causal=masked == "future")
    call = Call(
        aten._scaled_dot_product_fused_attention_overrideable.default,
        (q, k, v, mask, 0.0, masked == "future"),
        {},
        (plain, plain[..., 0]),
    )
    z, sums = call.replay()
    assert torch.allclose(z, plain, atol=1e-6)
    p = attention_probabilities(call)
    assert p.shape == (2, 4, 3, 3)
    assert torch.allclose(p.sum(-1), torch.ones(2, 4, 3), atol=1e-6)
    assert sums.shape == (2, 4, 3)


def test_a_row_that_sees_nothing_is_zero_and_so_is_its_gradient() -> None:
    q = torch.randn(1, 1, 2, 4)
    mask = torch.tensor([[False, False], [True, True]])
    args = (q, q, q, mask, 0.0, False)
    outputs = (torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2))
    call = Call(aten._scaled_dot_product_fused_attention_overrideable.default, args, {}, outputs)
    assert not attention_probabilities(call)[0, 0, 0].any()
    rule = find(call.op)
    assert rule is not None
    gradients = rule.backward(call, (torch.ones(1, 1, 2, 4), None))
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert not gradients[(0,)][0, 0, 0].any()


def _on_an_accelerator() -> list[Call]:
    """The kernels that only an accelerator has."""
    q, k, v = (torch.randn(1, 2, 16, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 16, 16, device="cuda", requires_grad=True)
    x, w = torch.randn(4, 64, device="cuda", requires_grad=True), torch.ones(64, device="cuda", requires_grad=True)

    def attend(backend: SDPBackend, *inputs: torch.Tensor, **options: object) -> None:
        with sdpa_kernel(backend):
            functional.scaled_dot_product_attention(*inputs, **options)

    with Recorder() as seen:
        attend(SDPBackend.FLASH_ATTENTION, q, k, v, is_causal=True)
        attend(SDPBackend.CUDNN_ATTENTION, q, k, v, is_causal=True)
        attend(SDPBackend.EFFICIENT_ATTENTION, q.float(), k.float(), v.float(), attn_mask=bias)
        functional.dropout(x, 0.3)
        functional.rms_norm(x, (64,), w)
        functional.softmax(q, -1, dtype=torch.float32)
    return [call for call in seen.calls if call.float_inputs()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_of_accelerators_agree_with_their_autograd() -> None:
    calls = _on_an_accelerator()
    assert {"native_dropout", "_scaled_dot_product_flash_attention"} <= {call.name for call in calls}
    for call in calls:
        rule = find(call.op)
        assert rule is not None, call.op
        upstream = [torch.randn_like(z) if z.is_floating_point() else None for z in call.outputs]
        upstream[1:] = [None] * (len(upstream) - 1)
        twin = by_autograd(call, upstream)
        if twin is None:
            continue
        again, taken, wanted = twin
        exact = again.to(torch.float64)
        by_rule = rule.backward(exact, [None if dz is None else dz.double() for dz in taken])
        for path, gradient in by_rule.items():
            scale = gradient.abs().max()
            assert ((wanted[path].double() - gradient).abs().max() / scale).item() < 0.02, (call.op, path)
