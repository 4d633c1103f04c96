"""Both families as modules: counts, tying, initialisation, dropout, checkpointing, inputs that make no sense."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lightwell.config.gpt import GPT_CONFIG_124M, GPTConfig, ModelConfig, ModernConfig
from lightwell.errors import UserError
from lightwell.model import loss
from lightwell.model.build import GPT
from lightwell.model.cache import KVCache
from lightwell.model.checks import check_ids
from lightwell.model.init import initialise

SMALL = {"vocab_size": 23, "context_length": 12, "n_layers": 3}
GPT2_SMALL = GPTConfig(**SMALL, emb_dim=24, n_heads=3)
MODERN_SMALL = ModernConfig(**SMALL, emb_dim=24, n_heads=6, n_kv_heads=2)
families = pytest.mark.parametrize("config", [GPT2_SMALL, MODERN_SMALL], ids=["gpt2", "modern"])
IDS = torch.randint(0, 23, (4, 12), generator=torch.Generator().manual_seed(4))
TARGETS = IDS.roll(-1, dims=1)


def fresh(config: ModelConfig, seed: int = 1) -> nn.Module:
    return GPT(config, torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(IDS, TARGETS)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 124_412_160), ({"tie_embeddings": False}, 163_009_536), ({"qkv_bias": True}, 124_439_808)],
)
def test_gpt2_has_the_published_number_of_parameters(changes: dict[str, bool], count: int) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(**{**GPT_CONFIG_124M, **changes}))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_modern_has_the_number_of_parameters_of_qwen3() -> None:
    """Qwen3-0.6B: 596,049,920 with tied embeddings."""
    config = ModernConfig(
        vocab_size=151_936, context_length=40_960, emb_dim=1024, n_heads=16, n_kv_heads=8, head_dim=128,
        n_layers=28, hidden_dim=3072, rope_theta=1_000_000.0,
    )  # fmt: skip
    with torch.device("meta"):
        model = GPT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 596_049_920


@families
def test_logits_and_loss_have_the_stated_shapes(config: ModelConfig) -> None:
    model = fresh(config)
    assert model.config is config
    assert model(IDS).shape == (4, 12, 23)
    loss_sum, n_targets = model(IDS, TARGETS)
    assert (loss_sum.shape, loss_sum.dtype, n_targets.shape, n_targets.dtype) == ((), torch.float32, (), torch.int64)
    assert loss_sum.item() / n_targets.item() == pytest.approx(math.log(23), rel=0.05)


@families
def test_later_tokens_and_other_documents_change_nothing(config: ModelConfig) -> None:
    model = fresh(config).double().eval()
    other = IDS.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 23
    assert torch.equal(model(IDS)[:, :7], model(other)[:, :7])
    documents = (torch.arange(12) >= 7).long().expand(4, 12)
    earlier = IDS.clone()
    earlier[:, :7] = (earlier[:, :7] + 1) % 23
    assert torch.equal(model(IDS, documents=documents)[:, 7:], model(earlier, documents=documents)[:, 7:])
    one = torch.zeros(4, 12, dtype=torch.int64)
    torch.testing.assert_close(model(IDS, documents=one), model(IDS), rtol=0, atol=1e-13)


# --- tying ------------------------------------------------------------------------------------------------------------


@families
def test_tied_weights_are_one_tensor_whatever_happens_to_the_model(config: ModelConfig) -> None:
    model = fresh(config)
    with torch.device("meta"):
        filled = GPT(config)
    filled.load_state_dict(model.state_dict(), assign=True)
    for changed in (model, copy.deepcopy(model), filled, fresh(config).double(), GPT(config)):
        assert changed.head.weight is changed.tok_emb.weight
    assert torch.equal(filled(IDS), model(IDS))


@families
def test_tied_weights_are_stored_once_and_read_from_either_form(config: ModelConfig) -> None:
    model, other = fresh(config), fresh(config, seed=2)
    state = model.state_dict()
    assert state.keys() == {name for name, _ in model.named_parameters()}
    assert "head.weight" not in state
    other.load_state_dict(state)
    assert torch.equal(other(IDS), model(IDS))
    other.load_state_dict({**state, "head.weight": state["tok_emb.weight"].clone()})
    with pytest.raises(RuntimeError, match=r"expected head\.weight equal to tok_emb\.weight"):
        other.load_state_dict({**state, "head.weight": state["tok_emb.weight"] + 1})
    with pytest.raises(RuntimeError, match=r"Missing key.*tok_emb\.weight"):
        other.load_state_dict({name: weight for name, weight in state.items() if name != "tok_emb.weight"})


@families
def test_untied_weights_are_two(config: ModelConfig) -> None:
    model = fresh(config.model_copy(update={"tie_embeddings": False}))
    assert "head.weight" in model.state_dict()
    assert not torch.equal(model.head.weight, model.tok_emb.weight)


# --- initialisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [GPTConfig, ModernConfig])
def test_initial_weights_are_gpt2s(family: type[GPTConfig | ModernConfig]) -> None:
    config = family(vocab_size=500, context_length=64, emb_dim=128, n_heads=4, n_layers=2, tie_embeddings=False)
    for name, parameter in fresh(config).named_parameters():
        if name.endswith("bias"):
            assert bool((parameter == 0).all()), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            std = 0.02 / math.sqrt(2 * 2) if "attn.out" in name or "mlp.down" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < std / 10, name


@families
def test_one_seed_gives_the_same_weights_in_every_dtype(config: ModelConfig) -> None:
    first, second, wide = fresh(config), fresh(config), fresh(config, seed=2).double()
    initialise(wide, torch.Generator().manual_seed(1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert torch.equal(weight, wide.state_dict()[name].float())
    assert not torch.equal(first.tok_emb.weight, fresh(config, seed=2).tok_emb.weight)
    assert not torch.equal(first.blocks[0].mlp.up.weight, first.blocks[1].mlp.up.weight)


@families
def test_with_zero_output_projections_each_block_begins_as_the_identity(config: ModelConfig) -> None:
    model = fresh(config)
    initialise(model, torch.Generator().manual_seed(1), zero_output_projections=True)
    seen: dict[str, Tensor] = {}
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.update(begin=arguments[0]))
    model.final_norm.register_forward_pre_hook(lambda _, arguments: seen.update(end=arguments[0]))
    model(IDS)
    assert torch.equal(seen["begin"], seen["end"])
    assert all(bool((gradient != 0).any()) for name, gradient in gradients(model).items() if "mlp.down" in name)


# --- training: dropout, checkpointing, autocast, compile --------------------------------------------------------------


@families
def test_dropout_drops_in_three_places_and_only_in_training(config: ModelConfig) -> None:
    model = fresh(config.model_copy(update={"drop_rate": 0.5}))
    assert not torch.equal(model(IDS), model(IDS))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert rates == {"drop": 0.5} | {f"blocks.{n}.{part}.drop": 0.5 for n in range(3) for part in ("attn", "mlp")}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.equal(model(IDS), model(IDS))  # what is left is the attention weights' own
    assert torch.equal(model.eval()(IDS), model(IDS))
    assert torch.equal(model(IDS), fresh(config).eval()(IDS))


@families
@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradients(config: ModelConfig, drop_rate: float) -> None:
    model = fresh(config.model_copy(update={"drop_rate": drop_rate})).double()
    found = []
    for model.checkpoint_activations in (False, True):
        torch.manual_seed(7)
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


@families
def test_checkpointing_keeps_less(config: ModelConfig) -> None:
    model = fresh(config)
    kept = []
    for model.checkpoint_activations in (False, True):
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(IDS, TARGETS)
        kept.append(sum(seen.values()))
    assert kept[1] < kept[0] / 2


@families
def test_bfloat16_autocast_stays_near_float32(config: ModelConfig) -> None:
    model = fresh(config)
    expected = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(model)
        logits = model(IDS)
    assert logits.dtype == torch.bfloat16
    for name, gradient in expected.items():
        assert got[name].dtype == torch.float32
        assert ((got[name] - gradient).norm() / gradient.norm()).item() < 0.05, name


@families
def test_a_model_in_bfloat16_runs_and_its_cache_too(config: ModelConfig) -> None:
    model = fresh(config).bfloat16().eval()
    assert model(IDS, TARGETS)[0].dtype == torch.float32
    cache = KVCache(config, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        parts = torch.cat([model(IDS[:, :6], cache=cache), model(IDS[:, 6:], cache=cache)], dim=1)
        torch.testing.assert_close(parts.float(), model(IDS).float(), rtol=0, atol=0.01)


@families
@pytest.mark.filterwarnings("ignore:.*autograd function will raise:DeprecationWarning")  # torch's compiler does that
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # and that
@pytest.mark.parametrize("rows", [8, 100], ids=["loss by pieces", "plain loss"])
def test_the_whole_model_is_one_graph_for_the_compiler(
    config: ModelConfig, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole (`fullgraph`), forward and backward, without the time that code generation takes."""
    monkeypatch.setattr(loss, "piece_rows", lambda *_, **__: rows)
    model = fresh(config)
    expected = gradients(model)
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(IDS, TARGETS)[0].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


# --- the user's mistakes ----------------------------------------------------------------------------------------------


@families
def test_mistakes_are_one_sentence(config: ModelConfig) -> None:
    model = fresh(config)
    with pytest.raises(UserError, match="at most context_length = 12 tokens, got 13"):
        model(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(UserError, match=r"in a \(B, T\) tensor, got torch.int64 of shape \(3,\)"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(UserError, match=r"got torch.float32 of shape \(1, 2\)"):
        model(torch.tensor([[1.0, 2.0]]))
    with pytest.raises(UserError, match=r"got torch.int64 of shape \(1, 0\)"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(UserError, match=r"targets of the shape of ids \(4, 12\), got \(4, 11\)"):
        model(IDS, TARGETS[:, 1:])
    with pytest.raises(UserError, match=r"documents of the shape of ids \(4, 12\), got \(12,\)"):
        model(IDS, documents=IDS[0])
    with pytest.raises(UserError, match="documents or a cache, got both"):
        model(IDS, cache=KVCache(config, 4), documents=IDS)
    with pytest.raises(UserError, match="a vocab_size to build a model from, got None"):
        GPT(config.model_copy(update={"vocab_size": None}))


def test_ids_outside_the_vocabulary_are_named() -> None:
    check_ids(GPT2_SMALL, IDS)
    check_ids(GPT2_SMALL, IDS[:, :0])
    for wrong in (23, -1):
        with pytest.raises(UserError, match=f"expected token ids from 0 to 22, got {wrong}"):
            check_ids(GPT2_SMALL, torch.tensor([[0, wrong, 5]]))
