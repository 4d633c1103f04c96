"""A trace holds what the step computed, and the step does not know that it was traced."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

import lightwell
from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.glass.capture import trace
from lightwell.glass.recording import Operation
from lightwell.glass.result import Trace
from lightwell.glass.values import Value
from lightwell.model.build import GPT

SMALL = {"vocab_size": 11, "context_length": 6, "emb_dim": 8, "n_heads": 2, "n_layers": 2}


def small_model(family: str = "gpt2", **options: object) -> nn.Module:
    torch.manual_seed(0)
    chosen = SMALL | options
    return GPT(GPTConfig(**chosen) if family == "gpt2" else ModernConfig(**chosen))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 11, (2, 6), generator=generator), torch.randint(0, 11, (2, 6), generator=generator)


def step(model: nn.Module) -> Tensor:
    loss_sum, count = model(*batch())
    loss = loss_sum / count
    loss.backward()
    return loss


def operations(t: Trace, name: str, phase: str = "forward") -> list[Operation]:
    return [o for o in t.operations if o.name == name and o.phase == phase]


def one(t: Trace, name: str, phase: str = "forward") -> Operation:
    found = operations(t, name, phase)
    assert len(found) == 1, (name, phase, t.operations)
    return found[0]


# --- watching changes nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("level", ["dissect", "snapshot"])
def test_a_traced_step_gives_the_same_bits(family: str, level: str) -> None:
    plain = small_model(family, drop_rate=0.1)
    watched = copy.deepcopy(plain)
    torch.manual_seed(5)
    expected = step(plain)
    torch.manual_seed(5)
    with trace(level) as t:
        loss = step(watched)
    assert torch.equal(loss, expected)
    assert t.passes
    for (name, p), q in zip(plain.named_parameters(), watched.parameters()):
        assert torch.equal(p, q), name
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad), name
        assert p.grad.stride() == q.grad.stride(), name
    assert torch.equal(torch.rand(3), torch.rand(3, generator=_generator_after_step(plain)))


def _generator_after_step(model: nn.Module) -> torch.Generator:
    """The generator as an untraced step leaves it, one draw of three later."""
    torch.manual_seed(5)
    step(model)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


def test_several_traced_steps_train_to_the_same_weights() -> None:
    plain = small_model()
    watched = copy.deepcopy(plain)
    for model, watch in ((plain, False), (watched, True)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            if watch:
                with trace():
                    step(model)
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
            else:
                step(model)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    for p, q in zip(plain.parameters(), watched.parameters()):
        assert torch.equal(p, q)


def _machinery() -> list[object]:
    return [
        *(len(v) for k, v in vars(module_hooks).items() if k.startswith("_global_") and isinstance(v, dict)),
        nn.Module.__call__,
        len(optimizer_hooks._global_optimizer_pre_hooks),
        len(optimizer_hooks._global_optimizer_post_hooks),
        torch.autograd._engine_run_backward,
        "apply" in vars(torch.autograd.function._SingleLevelFunction),
        torch.autograd.Function.apply.__func__,
        torch._C._len_torch_function_stack(),
        len(_get_current_dispatch_mode_stack()),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model = small_model()
    hooks = {name: dict(vars(m)) for name, m in model.named_modules()}
    before = _machinery()
    expected = model(batch()[0])
    context = pytest.raises(ZeroDivisionError) if fails else pytest.MonkeyPatch.context()
    with context, trace() as t:
        loss = step(model)
        if fails:
            raise ZeroDivisionError
    assert _machinery() == before
    for name, m in model.named_modules():
        for key, value in vars(m).items():
            if key.endswith("hooks"):
                assert value == hooks[name][key], (name, key)
    for p in model.parameters():
        assert p._backward_hooks is None
        assert set(vars(p)) == set(), "a parameter got an attribute"
    assert torch.equal(model(batch()[0]), expected)
    count = len(t.operations)
    loss.detach()
    step(model)
    assert len(t.operations) == count
    assert t.closed


def test_hooks_are_gone_from_the_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    with trace() as t:
        y = (x * 2).sum()
        y.backward(retain_graph=True)
    flows = [len(o.flows) for o in t.operations]
    y.backward()
    assert [len(o.flows) for o in t.operations] == flows
    assert len(t.passes) == 1


# --- the three layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("open_attention", [False, True])
def test_every_node_is_joined_to_one_operation(family: str, open_attention: bool) -> None:
    model = small_model(family, drop_rate=0.1)
    with trace(open_attention=open_attention) as t:
        loss_sum, _ = model(*batch())
        nodes = _nodes(loss_sum)
        loss_sum.backward()
    assert t.disagreements == []
    joined = sorted(o.node for o in t.operations if o.node)
    assert joined == sorted(n.name() for n in nodes if not hasattr(n, "variable"))
    assert all(o.kind != "autograd" for o in t.operations)
    parts = [o.name for o in t.operations]
    assert ("bmm" in parts) == (open_attention or model.training)
    for o in t.operations:
        assert bool(o.flows) == bool(o.node), o
        for path, (made_by, output) in o.differentiable.items():
            if made_by is not None:
                assert (o.inputs[path].producer, o.inputs[path].output) == (made_by, output)


def _nodes(tensor: Tensor) -> set[torch.autograd.graph.Node]:
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(n for n, _ in node.next_functions)
    return seen


def test_an_operation_knows_its_place() -> None:
    model = small_model()
    with trace() as t:
        step(model)
    gelu = operations(t, "gelu")
    assert [o.module.path for o in gelu if o.module] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert [o.call.name for o in gelu if o.call] == ["gelu", "gelu"]
    assert gelu[0].attributes == {"approximate": "tanh"}
    assert gelu[0].file.endswith("gpt2.py")
    assert "F.gelu" in inspect.getsource(inspect.getmodule(type(model))).splitlines()[gelu[0].line - 1]
    (up,) = [m for m in t.modules if m.path == "blocks.1.mlp.up"]
    assert (up.kind, up.parent.path if up.parent else "", up.calls) == ("Linear", "blocks.1.mlp", 1)
    assert [t.operations[i].name for i in up.operations] == ["view", "t", "addmm", "view"]
    divided = one(t, "div")
    assert divided.module is None
    assert divided.file == __file__


def test_values_are_those_of_the_step() -> None:
    model = small_model().double()
    seen: dict[str, Tensor] = {}
    for name, m in model.named_modules():
        m.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
    with trace() as t:
        step(model)
    for name in ("blocks.0.attn", "blocks.1.mlp.down", "final_norm"):
        assert any(v.name == "" and torch.equal(v.read(), seen[name]) for v in t.values if v.shape == seen[name].shape)
        assert t.value_of(seen[name]).producer is not None


def test_each_edge_carries_its_gradient() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    with trace() as t:
        a = x * w
        b = torch.tanh(a)
        loss = (b * a).sum()
        loss.backward()
    edges = {(t.operations[e.target].name, e.path): e for e in t.edges if t.operations[e.target].id < 4}
    dz = b.detach()
    da = a.detach()
    tanh_edge = edges["tanh", (0,)].gradient
    assert tanh_edge is not None
    assert torch.allclose(tanh_edge.read(), da * (1 - dz**2))
    first, second = operations(t, "mul")
    w_edge = edges["mul", (1,)]
    assert t.operations[w_edge.target] in (first, second)
    broadcast = [e for e in t.edges if t.operations[e.target] is first]
    assert [first.broadcast(e.path) for e in broadcast] == [False, True]
    assert broadcast[1].gradient is not None
    assert broadcast[1].gradient.shape == (3,)
    assert torch.equal(broadcast[1].gradient.read(), w.grad)
    (fan_out,) = t.fan_outs
    assert fan_out.value is t.value_of(a)
    assert sorted(t.operations[e.target].name for e in fan_out.edges) == ["mul", "tanh"]
    parts = [e.gradient.read() for e in fan_out.edges if e.gradient]
    assert fan_out.total is not None
    assert torch.equal(parts[0] + parts[1], fan_out.total.read())


def test_residual_stream_and_tied_weights_are_sums() -> None:
    model = small_model()
    with trace() as t:
        step(model)
    places = [sorted(t.operations[e.target].place.split()[0] for e in f.edges) for f in t.fan_outs]
    assert ["blocks.0", "blocks.0.norm1"] in places
    assert ["blocks.1", "blocks.1.norm2"] in places
    tied = next(f for f in t.fan_outs if f.value.name == "tok_emb.weight")
    assert sorted(t.operations[e.target].name for e in tied.edges) == ["embedding", "t"]
    total = sum(e.gradient.read() for e in tied.edges if e.gradient)
    assert torch.equal(total, model.tok_emb.weight.grad)


def test_large_parameters_keep_the_gradient_that_autograd_hands_over() -> None:
    """Holding a large gradient would make autograd copy it; its edge shows the parameter's own `.grad` instead."""
    linear = nn.Linear(200, 200)
    x = torch.randn(3, 200)
    with trace() as t:
        linear(x).square().sum().backward()
    transposed = one(t, "t")
    assert not any(name == "aten.copy_.default" for name, _ in transposed.backward)
    (edge,) = [e for e in t.edges if e.target == transposed.id]
    assert edge.gradient is not None
    assert torch.equal(edge.gradient.read(), linear.weight.grad)
    (arrived,) = [a for a in t.accumulations if a.parameter.name == "weight"]
    assert arrived.before is None
    assert arrived.increment is edge.gradient


# --- writes ---------------------------------------------------------------------------------------------------------


def test_in_place_values_are_those_at_the_time() -> None:
    x = torch.ones(3, requires_grad=True)
    with trace() as t:
        y = x * 2
        y += 1
        y.mul_(3)
        y.sum().backward()
    product, added, multiplied = one(t, "mul"), one(t, "add_"), one(t, "mul_")
    assert product.outputs[0].read().tolist() == [2, 2, 2]
    assert added.inputs[(0,)].read().tolist() == [2, 2, 2]
    assert added.outputs[0].read().tolist() == [3, 3, 3]
    assert multiplied.outputs[0].read().tolist() == [9, 9, 9]
    assert added.writes == [(0,)]
    assert multiplied.inputs[(0,)] is added.outputs[0]
    assert t.value_of(y) is multiplied.outputs[0]


def test_in_place_residual_stream() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            for layer in self.layers:
                x += layer(x)
            return x

    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3)
    for p in model.parameters():
        p.requires_grad_(False)  # PyTorch itself refuses a stream that a product saved and a write then changed
    x.requires_grad_()
    with trace() as t:
        model(x).sum().backward()
    stream = x.detach()
    for o, layer in zip(operations(t, "add_"), model.layers):
        assert torch.equal(o.inputs[(0,)].read(), stream)
        stream = stream + layer(stream).detach()
        assert torch.equal(o.outputs[0].read(), stream)
    assert t.disagreements == []


def test_a_write_through_a_view_is_a_new_value_of_the_whole() -> None:
    x = torch.ones(4, requires_grad=True)
    with trace() as t:
        y = x * 2
        y[1:3].mul_(5)
        loss = (y * y).sum()
        loss.backward()
    assert x.grad is not None
    assert one(t, "mul_").inputs[(0,)].read().tolist() == [2, 2]
    squared = operations(t, "mul")[-1]
    assert squared.inputs[(0,)].read().tolist() == [2, 10, 10, 2]
    assert squared.inputs[(0,)].producer == one(t, "mul_").id
    own = [o for o in t.operations if o.kind == "autograd"]
    assert [o.name for o in own] == ["CopySlices"]
    assert own[0].line == one(t, "mul_").line


def test_a_value_written_over_after_the_trace_is_refused() -> None:
    w = torch.ones(2, requires_grad=True)
    with trace() as t:
        (w * 3).sum().backward()
    value = t.value_of(w)
    assert value.read().tolist() == [1, 1]
    with torch.no_grad():
        w.add_(1)
    assert not value.readable
    with pytest.raises(lightwell.UserError, match="written over in place since then"):
        value.read()


def test_the_optimizer_inside_the_trace_leaves_both_values() -> None:
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5)
    with trace() as t:
        (w * 3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    first, *_, last = [v for v in t.values if v.name == "w"]
    assert first.read().tolist() == [1, 1]
    assert last.read().tolist() == [-0.5, -0.5]
    assert t.operations[last.producer or 0].phase == "optimizer"


# --- kinds of programs ----------------------------------------------------------------------------------------------


def test_dropout_masks_are_outputs() -> None:
    x = torch.ones(100, requires_grad=True)
    torch.manual_seed(3)
    with trace() as t:
        F.dropout(x, 0.5).sum().backward()
    multiplied = one(t, "mul")  # on CPUs dropout is a product with a mask of 0 and 1 / (1 - p)
    assert multiplied.call is not None
    assert multiplied.call.name == "dropout"
    assert sorted(set(multiplied.inputs[(1,)].read().tolist())) == [0, 2]
    with trace() as t:
        torch.native_dropout(x, 0.5, True)[0].sum().backward()
    dropout = one(t, "native_dropout")
    dropped, mask = dropout.outputs
    assert mask.dtype == torch.bool
    assert torch.equal(dropped.read(), mask.read() * 2.0)
    (again,) = dropout.kernel().replay()[:1]
    assert torch.equal(again, dropped.read())


def test_gradients_accumulate_over_passes() -> None:
    w = torch.tensor([2.0], requires_grad=True)
    w.grad = torch.tensor([10.0])
    with trace() as t:
        for x in (1.0, 5.0):
            (w * x).sum().backward()
    assert [p.index for p in t.passes] == [0, 1]
    first, second = t.accumulations
    assert [a.before.read().item() for a in (first, second) if a.before] == [10.0, 11.0]
    assert [a.increment.read().item() for a in (first, second) if a.increment] == [1.0, 5.0]
    assert [a.after.read().item() for a in (first, second) if a.after] == [11.0, 16.0]
    assert w.grad.item() == 16.0


def test_two_passes_over_one_graph() -> None:
    w = torch.tensor([2.0], requires_grad=True)
    with trace() as t:
        y = (w * w).sum()
        y.backward(retain_graph=True)
        y.backward()
    assert [f.index for f in one(t, "mul").flows] == [0, 1]
    assert w.grad is not None
    assert w.grad.item() == 8.0


def test_double_backward() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    with trace() as t:
        (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        first.sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 12.0
    assert [p.create_graph for p in t.passes] == [True, False]
    again = [o for o in t.operations if o.phase == "backward"]
    assert "mul" in [o.name for o in again]
    assert any(o.flows and o.flows[-1].index == 1 for o in again)
    captured = t.gradient_of(t.value_of(x), 0)
    assert captured is not None
    assert captured.read().item() == 12.0
    assert t.disagreements == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_tagged_as_recomputation(reentrant: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    with trace() as t:
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    again = one(t, "tanh", "recompute")
    assert again.again == one(t, "tanh").id
    assert again.module is not None
    assert again.module.path.endswith("1")
    assert torch.equal(again.outputs[0].read(), one(t, "tanh").outputs[0].read())
    for g, p in zip(expected, [x, *layer.parameters()]):
        assert torch.equal(g, p.grad)
    assert t.disagreements == []


def test_checkpointed_blocks_of_our_model() -> None:
    plain, saving = small_model(), small_model()
    saving.checkpoint_activations = True
    step(plain)
    with trace() as t:
        step(saving)
    assert {o.again for o in operations(t, "gelu", "recompute")} == {o.id for o in operations(t, "gelu")}
    for p, q in zip(plain.parameters(), saving.parameters()):
        assert torch.equal(p.grad, q.grad)


def test_checkpointed_function_without_a_module() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        checkpoint(lambda y: y.sin().exp(), x, use_reentrant=False).sum().backward()
    assert one(t, "sin", "recompute").again == one(t, "sin").id


def test_autocast_casts_are_operations() -> None:
    linear, x = nn.Linear(3, 3), torch.ones(2, 3)
    with trace() as t, torch.autocast("cpu", dtype=torch.bfloat16):
        linear(x).sum().backward()
    casts = operations(t, "_to_copy")
    assert {str(o.outputs[0].dtype) for o in casts} >= {"torch.bfloat16"}
    assert all(o.call is not None for o in casts)
    assert one(t, "addmm").outputs[0].dtype == torch.bfloat16
    assert t.disagreements == []


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.factor, None


doubled: Callable[..., Tensor] = Doubled.apply  # as programs keep it: bound before any trace begins


def test_a_custom_function_is_one_operation() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        doubled(x.exp(), 2.0).sum().backward()
    function = one(t, "Doubled")
    assert (function.kind, function.node, function.file) == ("function", "DoubledBackward", __file__)
    assert function.inputs[(0,)] is one(t, "exp").outputs[0]
    assert one(t, "sum").inputs[(0,)] is function.outputs[0]
    inside = one(t, "mul")
    assert inside.parent == function.id
    assert function.flows[0].downstream[(0,)].read().tolist() == [2, 2]
    assert t.disagreements == []


def test_compiled_models_step_aside_and_it_is_said() -> None:
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    with trace() as t:
        step(compiled)
    assert t.eager_instead_of_compiled
    assert any("eager" in note for note in t.notes)
    assert [o.module.path for o in operations(t, "gelu") if o.module] == ["blocks.0.mlp", "blocks.1.mlp"]


def test_views_know_what_they_are_views_of() -> None:
    x = torch.arange(6.0, requires_grad=True)
    with trace() as t:
        y = x.view(2, 3)
        z = y.t()
        z.sum().backward()
    view, transposed = one(t, "view"), one(t, "t")
    assert view.is_view
    assert transposed.inputs[(0,)] is view.outputs[0]
    assert one(t, "sum").inputs[(0,)] is transposed.outputs[0]
    assert t.value_of(y) is view.outputs[0]


def test_several_roots_are_told_apart() -> None:
    encoder, decoder = nn.Linear(2, 3), nn.Linear(3, 2)
    with trace() as t:
        decoder(encoder(torch.ones(1, 2))).sum().backward()
    assert [m.path for m in t.modules] == ["encoder", "decoder"]
    assert {v.name for v in t.values if v.role == "outside"} >= {"encoder.weight", "decoder.bias"}


def test_leaves_keep_their_variable_names() -> None:
    x = torch.tensor(1.1)
    w = torch.tensor(2.2, requires_grad=True)
    with trace() as t:
        a = torch.sigmoid(x * w)
        a.backward()
    assert [v.name for v in one(t, "mul").inputs.values()] == ["x", "w"]
    assert one(t, "sigmoid").outputs[0].name == "a"


def test_another_thread_is_not_recorded() -> None:
    from threading import Thread

    x = torch.ones(2, requires_grad=True)

    def elsewhere() -> None:
        y = nn.Linear(2, 2)(torch.ones(1, 2))
        y.sum().backward()

    with trace() as t:
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
        (x * 2).sum().backward()
    assert [o.name for o in t.operations] == ["mul", "sum", "ones_like", "detach"]
    assert len(t.passes) == 1


# --- bounded memory -------------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_to_its_limit() -> None:
    model, twin_model = small_model(), small_model()
    with trace("snapshot", memory_limit_bytes=4000) as t:
        loss = step(model)
    with trace() as full:
        step(twin_model)
    outside = {v._content.untyped_storage()._cdata for v in t.values if v.role == "outside" and v._content is not None}
    held = {
        v._content.untyped_storage()._cdata: v._content.untyped_storage().nbytes()
        for v in t.values
        if v._content is not None and v.role != "outside"
    }
    assert 0 < sum(size for storage, size in held.items() if storage not in outside) <= 4000
    assert any("memory limit of 4000 bytes" in note for note in t.notes)
    bounded, whole = _forward_values(t), _forward_values(full)
    assert [(name, v.shape, producer) for name, v, producer in bounded] == [(n, v.shape, p) for n, v, p in whole]
    pairs = [(v, w) for (_, v, _), (_, w, _) in zip(bounded, whole)]
    dropped, twin = next((v, w) for v, w in pairs if v.kept == "statistics" and v.numel > 64)
    assert dropped.statistics() == twin.statistics()
    assert dropped.sample is not None
    assert len(dropped.sample) == 64
    assert dropped.sample[0] == twin.read().reshape(-1)[0].item()
    assert dropped.sample[-1] == twin.read().reshape(-1)[-1].item()
    with pytest.raises(lightwell.UserError, match="memory limit"):
        dropped.read()
    assert loss.isfinite()


def _forward_values(t: Trace) -> list[tuple[str, Value, str]]:
    """Every input of every operation, with the operation that made it. A held factory result is detached once more."""
    wanted = [o for o in t.operations if o.name not in ("detach", "ones_like")]
    pairs = [(o.name, v) for o in wanted for v in o.inputs.values()]
    return [(name, v, "" if v.producer is None else t.operations[v.producer].name) for name, v in pairs]


def test_running_out_of_memory_while_copying_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightwell.glass import values

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(values, "_copy_out", no_room)
    x = torch.ones(3, requires_grad=True)
    with trace("snapshot") as t:
        y = x * 2
        y.add_(1)
        y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]
    assert any("memory ran out" in note for note in t.notes)
    statistics = one(t, "mul").outputs[0].statistics()
    assert statistics is not None
    assert statistics.mean == 2.0


# --- bad input ------------------------------------------------------------------------------------------------------


def test_options_that_are_not_there() -> None:
    with pytest.raises(lightwell.UserError, match="expected level 'dissect' or 'snapshot', got 'pulse'"):
        trace("pulse")  # type: ignore[arg-type]
    with pytest.raises(lightwell.UserError, match="0 or more"):
        trace(memory_limit_bytes=-1)


def test_a_trace_inside_a_trace() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        with pytest.raises(lightwell.UserError, match="expected no other trace"), trace():
            pass
        (x * 2).sum().backward()
    assert len(t.passes) == 1
    with trace() as t:
        pass
    assert t.operations == []


def test_tensors_that_the_trace_has_not_seen() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        (x * 2).sum().backward()
        with pytest.raises(lightwell.UserError, match="inside its block"):
            t.value_of(x)
    with pytest.raises(lightwell.UserError, match="expected a tensor that the traced step used"):
        t.value_of(torch.ones(2))
    with pytest.raises(lightwell.UserError, match="expected a tensor, got str"):
        t.value_of("x")  # type: ignore[arg-type]


def test_errors_of_the_program_pass_through() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="scalar"), trace() as t:
        (x * 2).backward()
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"), trace() as t:
        y.backward()
    assert "second time" in t.passes[-1].failure
    assert t.closed


def test_several_devices() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        torch.ones(2, device="meta") * 2
        (x * 2).sum().backward()
    assert any("several devices (cpu, meta)" in note for note in t.notes)
