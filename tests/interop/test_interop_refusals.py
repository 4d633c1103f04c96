"""What we could not run exactly is refused by name; what a stranger may have put into a folder does no harm."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.errors import DamagedError, FormatError, UserError
from lightwell.interop.huggingface import export_model, import_model
from lightwell.interop.names import to_theirs
from lightwell.interop.settings import read_settings, write_settings
from lightwell.model.build import GPT
from lightwell.store.tensors import read_tensors, write_tensors
from lightwell.tokenizer.simple import BytesTokenizer

SMALL = {"vocab_size": 31, "context_length": 12, "n_layers": 2}
GPT2_SMALL = GPTConfig(**SMALL, emb_dim=15, n_heads=3)
MODERN_SMALL = ModernConfig(**SMALL, emb_dim=12, n_heads=6, n_kv_heads=2)


def exported(folder: Path, config: ModelConfig) -> Path:
    return export_model(config, GPT(config).state_dict(), None, folder)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return exported(tmp_path / "gpt2", GPT2_SMALL)


@pytest.fixture
def modern(tmp_path: Path) -> Path:
    return exported(tmp_path / "modern", MODERN_SMALL)


def change_settings(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    tensors, _ = read_tensors(file)
    change(tensors)
    file.unlink()
    write_tensors(file, tensors)


# --- settings ---------------------------------------------------------------------------------------------------------

REFUSED_GPT2 = {
    "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "scale_attn_weights": False,
    "activation_function": "gelu", "layer_norm_epsilon": 1e-6, "add_cross_attention": True, "attn_pdrop": 0.3,
    "n_ctx": 99, "is_encoder_decoder": True, "pruned_heads": {"0": [1]}, "quantization_config": {"bits": 4},
    "auto_map": {"AutoModelForCausalLM": "code.Model"}, "a_setting_of_tomorrow": 1, "lightwell": {"colour": "red"},
}  # fmt: skip
REFUSED_MODERN = {
    "attention_bias": True, "use_sliding_window": True, "hidden_act": "gelu", "rope_scaling": {"rope_type": "yarn"},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "layer_types": ["full_attention", "sliding_attention"], "rope_theta": 77.0, "num_experts": 8,
    "quantization_config": {"bits": 4}, "add_cross_attention": True,
}  # fmt: skip


@pytest.mark.parametrize(("config", "key", "value"), [
    *((GPT2_SMALL, key, value) for key, value in REFUSED_GPT2.items()),
    *((MODERN_SMALL, key, value) for key, value in REFUSED_MODERN.items()),
], ids=[*REFUSED_GPT2, *(f"modern {key}" for key in REFUSED_MODERN)])  # fmt: skip
def test_a_setting_we_do_not_have_is_refused_by_name(config: ModelConfig, key: str, value: Any) -> None:
    raw = {**write_settings(config, None), key: value}
    with pytest.raises(FormatError, match=f"expected .* in config.json, got .*{key}"):
        read_settings(raw, "config.json")


@pytest.mark.parametrize("config", [GPT2_SMALL, MODERN_SMALL], ids=["gpt2", "modern"])
def test_sizes_must_be_there_and_make_sense(config: ModelConfig) -> None:
    raw = write_settings(config, 3)
    needed = [key for key in raw if key.startswith(("n_", "num_", "hidden_size", "max_pos", "head_dim", "vocab"))]
    assert len(needed) >= 5
    for key in set(needed) - {"n_ctx", "n_inner"}:
        with pytest.raises(FormatError, match=f"expected {key} in config.json, found none"):
            read_settings({name: value for name, value in raw.items() if name != key}, "config.json")
        for wrong in (-1, "12", 2.5, None, [3]):
            with pytest.raises(FormatError, match=r"expected .* in config\.json"):
                read_settings({**raw, key: wrong}, "config.json")


@pytest.mark.parametrize("raw", [[], "gpt2", None, {}, {"model_type": "llama"}, {"model_type": ["gpt2"]}])
def test_other_models_are_refused(raw: Any) -> None:
    with pytest.raises(FormatError, match=r"expected (settings|model_type gpt2 or qwen3) in here, got"):
        read_settings(raw, "here")


def test_settings_as_openai_and_qwen_published_them() -> None:
    gpt2 = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    }  # fmt: skip
    assert read_settings(gpt2, "") == GPTConfig(
        vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, drop_rate=0.1, qkv_bias=True
    )
    qwen3 = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    assert read_settings(qwen3, "") == ModernConfig(
        vocab_size=151936, context_length=40960, emb_dim=1024, n_heads=16, n_kv_heads=8, head_dim=128, n_layers=28,
        hidden_dim=3072, rope_theta=1e6,
    )  # fmt: skip


@pytest.mark.parametrize("config", [GPT2_SMALL, MODERN_SMALL], ids=["gpt2", "modern"])
def test_settings_are_the_same_there_and_back(config: ModelConfig) -> None:
    filled = {} if isinstance(config, GPTConfig) else {"hidden_dim": config.mlp_dim, "head_dim": config.size_per_head}
    assert read_settings(json.loads(json.dumps(write_settings(config, 3))), "") == config.model_copy(update=filled)


def test_both_spellings_of_the_rotation_are_written_and_either_is_enough() -> None:
    raw = write_settings(MODERN_SMALL, None)
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 10_000.0
    assert raw["head_dim"] == 2
    for left_out in ("rope_theta", "rope_parameters"):
        read_settings({key: value for key, value in raw.items() if key != left_out}, "")
    with pytest.raises(FormatError, match="expected rope_theta or rope_parameters"):
        read_settings({key: value for key, value in raw.items() if not key.startswith("rope")}, "")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_zeros_are_written_for_a_bias_that_is_not_there(gpt2: Path) -> None:
    tensors, _ = read_tensors(gpt2 / "model.safetensors")
    assert tensors["transformer.h.1.attn.c_attn.bias"].tolist() == [0.0] * 45
    assert json.loads((gpt2 / "config.json").read_text())["lightwell"] == {"qkv_bias": False}
    assert import_model(gpt2)[0].qkv_bias is False

    def set_bias(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.1.attn.c_attn.bias"][3] = 1.0

    change_weights(gpt2, set_bias)
    with pytest.raises(FormatError, match="expected biases of zero"):
        import_model(gpt2)
    raw = json.loads((gpt2 / "config.json").read_text())
    del raw["lightwell"]
    (gpt2 / "config.json").write_text(json.dumps(raw))
    config, weights, _ = import_model(gpt2)
    assert config.qkv_bias is True
    assert weights["blocks.1.attn.qkv.bias"][3] == 1.0


def test_older_files_without_the_first_word_and_with_masks_are_read(gpt2: Path) -> None:
    expected = import_model(gpt2)[1]
    tensors, _ = read_tensors(gpt2 / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    older |= {f"h.{n}.attn.bias": torch.ones(1, 1, 12, 12, dtype=torch.uint8) for n in range(2)}
    older |= {f"h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
    (gpt2 / "model.safetensors").unlink()
    write_tensors(gpt2 / "model.safetensors", older)
    weights = import_model(gpt2)[1]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_half_precision_becomes_float32(modern: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16()

    change_weights(modern, halve)
    assert {tensor.dtype for tensor in import_model(modern)[1].values()} == {torch.float32}


def edit(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor

    return change


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(("change", "sentence"), [
    (edit(UP, None), f"expected 1 more weights, first of them {UP}"),
    (edit("model.layers.2.mlp.up_proj.weight", torch.ones(2)), "no other weights than those of modern, got model"),
    (edit("lm_head.weight", torch.ones(31, 12)), "expected lm_head.weight to equal the embedding"),
    (edit(UP, torch.ones(32, 11)), r"expected blocks.1.mlp.up.weight of shape \(32, 12\), .* got \(32, 11\)"),
    (edit(UP, torch.full((32, 12), float("nan"))), f"expected finite numbers in {UP}"),
    (edit(UP, torch.ones(32, 12, dtype=torch.int8)), f"expected floating-point weights in .*, got {UP} of type I8"),
], ids=["missing", "one too many", "a head of its own", "another shape", "not finite", "quantised"])  # fmt: skip
def test_wrong_weights_are_named(modern: Path, change: Callable[[dict[str, Tensor]], None], sentence: str) -> None:
    change_weights(modern, change)
    with pytest.raises(FormatError, match=sentence):
        import_model(modern)


def test_a_config_that_claims_a_million_layers_costs_nothing(gpt2: Path) -> None:
    change_settings(gpt2, n_layer=10**15)
    with pytest.raises(FormatError, match="expected weights of 1000000000000000 layers, got 28 weights"):
        import_model(gpt2)


def test_pickles_are_refused_unopened(gpt2: Path) -> None:
    (gpt2 / "model.safetensors").rename(gpt2 / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"got pytorch_model\.bin: pickles can execute code"):
        import_model(gpt2)


def test_a_header_of_a_gigabyte_is_refused(gpt2: Path) -> None:
    (gpt2 / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 30) + b"{" * 1000)
    with pytest.raises(FormatError, match="expected a header of at most"):
        import_model(gpt2)


def test_an_index_cannot_lead_out_of_the_folder(gpt2: Path) -> None:
    for name in ("../secret.safetensors", "/etc/secret.safetensors"):
        (gpt2 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
        with pytest.raises(DamagedError, match="leads out of it"):
            import_model(gpt2)


@pytest.mark.parametrize(("index", "sentence"), [
    ([], "expected weight_map"),
    ({"weight_map": {"a": 3}}, "expected weight_map"),
    ({"weight_map": {"a": "other.safetensors"}}, "expected a safetensors file .*other.safetensors"),
    ({"weight_map": {"a": "config.json"}}, "expected a safetensors file"),
    ({"weight_map": {"a": "model.safetensors"}}, "expected the weights that .* lists, got other ones: a"),
])  # fmt: skip
def test_a_wrong_index_is_refused(gpt2: Path, index: Any, sentence: str) -> None:
    (gpt2 / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=sentence):
        import_model(gpt2)


def test_folders_that_are_none(tmp_path: Path, gpt2: Path) -> None:
    with pytest.raises(FormatError, match=r"expected a folder with config\.json"):
        import_model(tmp_path / "nowhere")
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"expected model\.safetensors in .*, found none"):
        import_model(gpt2)
    (gpt2 / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"expected JSON in .*config\.json"):
        import_model(gpt2)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = export_model(GPT2_SMALL, GPT(GPT2_SMALL).state_dict(), BytesTokenizer(), tmp_path / "out")
    with pytest.raises(FormatError, match="expected a tokenizer of at most 31 tokens"):
        import_model(folder)


def test_nothing_is_written_over(gpt2: Path) -> None:
    with pytest.raises(UserError, match="not to exist"):
        exported(gpt2, GPT2_SMALL)


def test_weights_go_out_in_float32_and_once() -> None:
    model = GPT(GPT2_SMALL).double()
    tensors = to_theirs(GPT2_SMALL, model.state_dict())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert "lm_head.weight" not in tensors
    assert all(tensor.is_contiguous() for tensor in tensors.values())
