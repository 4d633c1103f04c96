"""What the counts say against what is there: modules, products executed, what autograd keeps, what is allocated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lightwell.config.gpt import GPT_CONFIG_124M, GPTConfig, ModelConfig, ModernConfig
from lightwell.model import loss
from lightwell.model.build import GPT
from lightwell.model.count import flops_per_token, memory_bytes, parameters, qkv_rows
from lightwell.model.kernels.build import library, why_not
from lightwell.model.kernels.fused import fused
from lightwell.training.muon import Muon
from lightwell.training.optimizer import is_hidden_matrix

SMALL = {"vocab_size": 211, "context_length": 64, "emb_dim": 48, "n_layers": 3}
CONFIGS: dict[str, ModelConfig] = {
    "gpt2": GPTConfig(**SMALL, n_heads=4),
    "gpt2 with qkv bias, untied": GPTConfig(**SMALL, n_heads=3, qkv_bias=True, tie_embeddings=False, hidden_dim=100),
    "modern": ModernConfig(**SMALL, n_heads=6, n_kv_heads=2, head_dim=10),
    "modern untied": ModernConfig(**SMALL, n_heads=4, tie_embeddings=False),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
COMPONENTS = {
    "token_embedding": ("tok_emb",),
    "position_embedding": ("pos_emb",),
    "attention": ("attn",),
    "mlp": ("mlp",),
    "norms": ("norm1", "norm2", "final_norm"),
    "head": ("head",),
}


@each_config
def test_parameters_are_those_of_the_module_by_component(config: ModelConfig) -> None:
    found = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in GPT(config).named_parameters():
        parts = name.removeprefix("blocks.").split(".")
        [component] = [key for key, words in COMPONENTS.items() if set(words) & set(parts[:2])]
        found[component] += parameter.numel()
    assert parameters(config) == {**found, "total": sum(found.values())}


def test_gpt2_has_its_published_number_of_parameters() -> None:
    assert parameters(GPTConfig(**GPT_CONFIG_124M))["total"] == 124_412_160
    assert parameters(GPTConfig(**GPT_CONFIG_124M, tie_embeddings=False))["total"] == 163_009_536
    assert parameters(GPTConfig(**{**GPT_CONFIG_124M, "qkv_bias": True}))["total"] == 124_439_808


# --- arithmetic -------------------------------------------------------------------------------------------------------


# The CPU's attention kernels by torch's own formulas for others, which count the future too: halved, our convention.
# And a product that adds to what is there, which torch's table forgets.
PRODUCTS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, out_shape, **__: sdpa_flop_count(q, k, v) // 2
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, out_shape, **__: sdpa_backward_flop_count(gradient, q, k, v) // 2
    ),
    torch.ops.aten.addmm_: lambda total, a, b, *, out_shape: 2 * a[0] * a[1] * b[1],
}


@each_config
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("T", [64, 20])
def test_flops_are_those_of_the_products_executed(config: ModelConfig, checkpoint: bool, T: int) -> None:
    if isinstance(config, ModernConfig) and config.kv_heads != config.n_heads:
        config = config.model_copy(update={"n_kv_heads": config.n_heads})  # torch's formula wants as many keys
    model = GPT(config)
    model.checkpoint_activations = checkpoint
    ids = torch.randint(0, 211, (2, T))
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as forward:
        loss_sum, _ = model(ids, ids)
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as backward:
        loss_sum.backward()
    estimate = flops_per_token(config, T, checkpoint_activations=checkpoint)
    assert forward.get_total_flops() == 2 * T * estimate["forward"]
    assert backward.get_total_flops() == 2 * T * estimate["backward"]
    assert estimate["total"] == estimate["forward"] + estimate["backward"]


def test_loss_by_pieces_has_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "piece_rows", lambda *_: 32)
    model = GPT(CONFIGS["gpt2"])
    ids = torch.randint(0, 211, (2, 64))
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as both:
        model(ids, ids)[0].backward()
    assert both.get_total_flops() == 2 * 64 * flops_per_token(CONFIGS["gpt2"])["total"]


def test_gpt2_124m_takes_about_six_flops_per_parameter_and_token() -> None:
    config = GPTConfig(**GPT_CONFIG_124M)
    assert flops_per_token(config, 1)["total"] == pytest.approx(6 * (124_412_160 - 1024 * 768), rel=2e-3)
    attention = flops_per_token(config)["total"] - flops_per_token(config, 1)["total"]
    assert attention == 12 * (2 + 5) * 2 * 768 * 1023 / 2


# --- memory -----------------------------------------------------------------------------------------------------------

DROPOUT = pytest.mark.parametrize("drop_rate", [0.0, 0.1], ids=["no dropout", "dropout"])
CHECKPOINT = pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpointed"])
BFLOAT16 = pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])


def kept_bytes(model: torch.nn.Module, ids: Tensor, half: bool) -> int:
    """Bytes of the storages, parameters aside, that autograd keeps for a backward pass."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model(ids, ids)
    return sum(tensor.untyped_storage().nbytes() for where, tensor in kept.items() if where not in known)


@each_config
@DROPOUT
@CHECKPOINT
@BFLOAT16
def test_activations_are_what_autograd_keeps(
    config: ModelConfig, drop_rate: float, checkpoint: bool, half: bool
) -> None:
    model = GPT(config.model_copy(update={"drop_rate": drop_rate}))
    model.checkpoint_activations = checkpoint
    estimate = memory_bytes(
        model.config, 3, dtype_bytes=2 if half else 4, checkpoint_activations=checkpoint, context_length=40
    )
    kept = kept_bytes(model, torch.randint(0, 211, (3, 40)), half)
    assert estimate["activations"] == pytest.approx(kept, rel=0.02)


@pytest.mark.skipif(library() is None, reason=f"no C kernels here: {why_not()}")
@pytest.mark.parametrize("n_tokens", [200, 300])
@BFLOAT16
def test_our_own_attention_keeps_its_weights_in_bfloat16_alone(n_tokens: int, half: bool) -> None:
    config = GPTConfig(vocab_size=211, context_length=n_tokens, emb_dim=48, n_heads=12, n_layers=2, drop_rate=0.0)
    ids = torch.randint(0, 211, (3, n_tokens))
    with fused():
        kept = kept_bytes(GPT(config), ids, half)
    estimate = memory_bytes(config, 3, dtype_bytes=2 if half else 4, kernels=True)
    assert kept <= estimate["activations"] < 1.1 * kept  # of the loss less is kept, too
    without = memory_bytes(config, 3, dtype_bytes=2 if half else 4)["activations"]
    assert without < 0.8 * kept if half else kept < without  # as PyTorch's fused kernel


def test_with_grouped_heads_pytorch_keeps_no_weights() -> None:
    """Our own attention is for as many heads of keys as of queries."""
    grouped = ModernConfig(vocab_size=8192, context_length=512, emb_dim=96, n_heads=12, n_kv_heads=4, n_layers=2)
    estimates = [memory_bytes(grouped, 2, kernels=kernels)["activations"] for kernels in (False, True)]
    assert estimates[0] == estimates[1]


@pytest.mark.skipif(library() is None, reason=f"no C kernels here: {why_not()}")
def test_with_kernels_the_loss_is_always_by_pieces() -> None:
    config = GPTConfig(vocab_size=8192, context_length=64, emb_dim=128, n_heads=2, n_layers=1, drop_rate=0.0)
    with fused():
        kept = kept_bytes(GPT(config), torch.randint(0, 8192, (1, 64)), False)
    assert kept <= memory_bytes(config, 1, kernels=True)["activations"]


def allocated_peak(model: torch.nn.Module, batch_size: int) -> int:
    """The most bytes of tensors that the second of two steps had at once, beyond weights and optimizer state."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, model.config.vocab_size, (batch_size, model.config.context_length))

    def step() -> None:
        loss_sum, n_targets = model(ids, ids)
        (loss_sum / n_targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return most_allocated(step)


def most_allocated(run: Any) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert most > 0
    return most


def step_bytes(estimate: dict[str, int]) -> int:
    """What comes and goes in a step, as tensors."""
    return estimate["total"] - sum(estimate[part] for part in ("weights", "optimizer", "fragmentation", "saving_copy"))


LARGER: dict[str, tuple[dict[str, Any], int]] = {  # sizes, batch
    "blocks weigh most": ({"vocab_size": 512, "context_length": 64, "emb_dim": 128, "n_heads": 4, "n_layers": 4}, 8),
    "attention weighs most": (
        {"vocab_size": 300, "context_length": 256, "emb_dim": 64, "n_heads": 8, "n_layers": 2}, 2,
    ),
    "vocabulary weighs most": (
        {"vocab_size": 9000, "context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2}, 1,
    ),
    "untied": (
        {"vocab_size": 4000, "context_length": 64, "emb_dim": 64, "n_heads": 4, "n_layers": 3, "tie_embeddings": False},
        16,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sizes", "batch_size"), LARGER.values(), ids=LARGER.keys())
@pytest.mark.parametrize(
    ("family", "drop_rate", "checkpoint"),
    [(GPTConfig, 0.0, False), (GPTConfig, 0.1, True), (ModernConfig, 0.1, False), (ModernConfig, 0.0, True)],
)
def test_the_peak_of_a_step_is_what_is_allocated(
    family: type[Any], sizes: dict[str, Any], batch_size: int, drop_rate: float, checkpoint: bool
) -> None:
    model = GPT(family(**sizes, drop_rate=drop_rate))
    model.checkpoint_activations = checkpoint
    estimate = memory_bytes(model.config, batch_size, checkpoint_activations=checkpoint)
    assert step_bytes(estimate) == pytest.approx(allocated_peak(model, batch_size), rel=0.05)


@pytest.mark.parametrize("config", [
    GPTConfig(vocab_size=100, context_length=8, emb_dim=128, n_heads=8, n_layers=4),
    ModernConfig(vocab_size=100, context_length=8, emb_dim=128, n_heads=8, n_kv_heads=2, n_layers=4),
    ModernConfig(vocab_size=100, context_length=8, emb_dim=128, n_heads=8, n_layers=4, hidden_dim=640),
], ids=["gpt2", "modern", "modern, wide MLP"])  # fmt: skip
def test_muon_keeps_less_and_needs_more_for_a_moment(config: ModelConfig) -> None:
    model = GPT(config)
    matrices = {name: p for name, p in model.named_parameters() if is_hidden_matrix(name, p)}
    splits = {name: qkv_rows(config) for name in matrices if name.endswith("attn.qkv.weight")}
    muon = Muon(matrices, splits, 0.95, torch.float32)
    ids = torch.zeros(1, 8, dtype=torch.int64)
    model(ids, ids)[0].backward()
    most = most_allocated(lambda: muon.step(0.02, 0.0, torch.tensor(True)))
    estimate = memory_bytes(config, 1, optimizer="muon")
    assert step_bytes(estimate) - estimate["gradients"] == pytest.approx(most, rel=0.06)
    hidden = sum(p.numel() for p in matrices.values())
    assert estimate["optimizer"] == 4 * (2 * parameters(config)["total"] - hidden)


def test_the_parts_and_the_total() -> None:
    config = CONFIGS["gpt2"]
    plain, accumulating = memory_bytes(config, 4), memory_bytes(config, 4, accumulate=True)
    assert plain["weights"] == plain["gradients"] == 4 * parameters(config)["total"]
    assert plain["optimizer"] == 2 * plain["weights"]
    assert plain["saving_copy"] == plain["weights"] + plain["optimizer"]
    assert accumulating["total"] > plain["total"]
    assert memory_bytes(config, 4, dropout=True)["total"] > plain["total"]
    on_gpu = memory_bytes(config, 4, device="cuda")["total"]
    assert on_gpu <= plain["total"] - plain["saving_copy"]  # which lies in the host's memory
    assert all(value >= 0 for value in plain.values())
