"""Our models against transformers' own, random and small, in both directions: logits and every gradient."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.interop.huggingface import compare_with_transformers, export_model, import_model
from lightwell.interop.names import rows, to_ours
from lightwell.model.build import GPT
from lightwell.tokenizer.bpe import train_bpe
from lightwell.tokenizer.simple import BytesTokenizer

transformers = pytest.importorskip("transformers")
# Their modules are imported when first asked for, which takes seconds: here, not inside a test's time.
CLASSES = {"gpt2": transformers.GPT2LMHeadModel, "qwen3": transformers.Qwen3ForCausalLM}

SMALL = {"vocab_size": 31, "context_length": 12, "n_layers": 2}
CONFIGS: dict[str, ModelConfig] = {
    "gpt2, three heads, no qkv bias": GPTConfig(**SMALL, emb_dim=15, n_heads=3),
    "gpt2, qkv bias, untied, narrow MLP": GPTConfig(
        **SMALL, emb_dim=10, n_heads=2, qkv_bias=True, tie_embeddings=False, hidden_dim=23
    ),
    "modern, grouped heads": ModernConfig(**SMALL, emb_dim=12, n_heads=6, n_kv_heads=2),
    "modern, three heads, untied, odd sizes": ModernConfig(
        **SMALL, emb_dim=14, n_heads=3, n_kv_heads=1, head_dim=6, hidden_dim=17, tie_embeddings=False,
        rope_theta=500.0, norm_eps=1e-4,
    ),
}  # fmt: skip
THEIRS = {
    "gpt2, three heads": transformers.GPT2Config(vocab_size=31, n_positions=12, n_embd=15, n_head=3, n_layer=2),
    "gpt2, untied, narrow MLP": transformers.GPT2Config(
        vocab_size=31, n_positions=12, n_embd=10, n_head=5, n_layer=3, n_inner=23, tie_word_embeddings=False
    ),
    "qwen3, grouped heads": transformers.Qwen3Config(
        vocab_size=31, max_position_embeddings=12, hidden_size=12, num_attention_heads=6, num_key_value_heads=3,
        head_dim=4, intermediate_size=17, num_hidden_layers=2, tie_word_embeddings=True,
    ),
    "qwen3, untied": transformers.Qwen3Config(
        vocab_size=31, max_position_embeddings=12, hidden_size=14, num_attention_heads=3, num_key_value_heads=1,
        head_dim=6, intermediate_size=20, num_hidden_layers=2, tie_word_embeddings=False, rms_norm_eps=1e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0},
    ),
}  # fmt: skip
IDS = torch.randint(0, 31, (3, 12), generator=torch.Generator().manual_seed(2))
TARGETS = IDS.roll(-1, dims=1)


def far_from_neutral(model: nn.Module) -> nn.Module:
    """Every parameter, biases and gains too, moved away from its first value."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Logits, and the gradient of every weight, to 1e-5 of the largest value, in float32."""
    logits = theirs(input_ids=IDS).logits
    assert_close(ours(IDS).detach(), logits.detach(), "logits")
    F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten(), reduction="sum").backward()
    ours(IDS, TARGETS)[0].backward()
    config = ours.config
    if isinstance(config, GPTConfig):
        config = config.model_copy(update={"qkv_bias": True})  # theirs always has one, whose gradient is not zero
    expected = to_ours(config, {name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[name], name)


def assert_close(got: Tensor, expected: Tensor, name: str) -> None:
    assert ((got - expected).abs().max() / expected.abs().max()).item() < 1e-5, name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_an_exported_model_is_the_same_in_transformers(config: ModelConfig, tmp_path: Path) -> None:
    model = far_from_neutral(GPT(config))
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.tie_word_embeddings == config.tie_embeddings
    assert_same(model, theirs.eval())


@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS.keys())
@pytest.mark.parametrize("shard_size", ["1GB", "2kB"], ids=["one file", "several files"])
def test_an_imported_model_is_the_same_here(config: Any, shard_size: str, tmp_path: Path) -> None:
    theirs = far_from_neutral(CLASSES[config.model_type](config))
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "2kB")
    ours_config, weights, tokenizer = import_model(tmp_path)
    assert tokenizer is None
    model = GPT(ours_config)
    model.load_state_dict(weights)
    assert_same(model.eval(), theirs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_there_and_back_changes_no_number(config: ModelConfig, tmp_path: Path) -> None:
    model = far_from_neutral(GPT(config))
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    back, weights, _ = import_model(folder)
    filled = {} if isinstance(config, GPTConfig) else {"hidden_dim": config.mlp_dim, "head_dim": config.size_per_head}
    assert back == config.model_copy(update=filled)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_through_their_save_and_back_changes_no_number(config: ModelConfig, tmp_path: Path) -> None:
    """transformers keeps the key of our own, and what it writes we read."""
    model = far_from_neutral(GPT(config))
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    back, weights, _ = import_model(tmp_path / "theirs")
    assert getattr(back, "qkv_bias", None) == getattr(config, "qkv_bias", None)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_each_row_of_the_table_is_a_weight_on_both_sides() -> None:
    for config in CONFIGS.values():
        table = rows(config)
        ours = {row.ours for row in table}
        assert GPT(config).state_dict().keys() <= ours
        assert all(name.endswith("attn.qkv.bias") for name in ours - GPT(config).state_dict().keys())
        theirs = [name for row in table for name in row.all_theirs]
        assert len(theirs) == len(set(theirs))


# --- the comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_comparison_says_equal(config: ModelConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = far_from_neutral(GPT(config)).train()
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    found = compare_with_transformers(folder, model)
    assert found.equal
    assert found.max_rel < 1e-5
    assert "through transformers" in found.verdict
    assert "logits equal ours" in found.verdict
    assert model.training
    assert capfd.readouterr() == ("", "")


def test_the_comparison_notices_another_model(tmp_path: Path) -> None:
    config = CONFIGS["modern, grouped heads"]
    model = far_from_neutral(GPT(config))
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    with torch.no_grad():
        model.blocks[1].attn.k_norm.weight[0] += 0.01
    found = compare_with_transformers(folder, model)
    assert not found.equal
    assert found.max_rel > 1e-5
    assert found.max_abs > 0
    assert "DIFFER" in found.verdict


def test_without_transformers_the_verdict_is_round_trip_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["gpt2, three heads, no qkv bias"]
    model = far_from_neutral(GPT(config))
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails
    found = compare_with_transformers(folder, model)
    assert found.equal
    assert "round trip only" in found.verdict


# --- tokenizers -------------------------------------------------------------------------------------------------------

TEXTS = ["the light in the well\n\n    wanders  down: 1234, ", "Ünïcode 你好 😀", "<|separator|> typed"]


def test_autotokenizer_reads_ours(tmp_path: Path) -> None:
    tokenizer = train_bpe(["the light in the well wanders down the well " * 20], 270)
    config = GPTConfig(**{**SMALL, "vocab_size": tokenizer.vocab_size, "context_length": 99}, emb_dim=4, n_heads=1)
    folder = export_model(config, GPT(config).state_dict(), tokenizer, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.separator_id, tokenizer.separator_id)
    assert theirs.model_max_length == 99
    for text in TEXTS[:2]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == tokenizer.separator_id
    assert import_model(folder)[2].hash == tokenizer.hash
    assert not (folder / "vocab.json").exists()  # readers of that file would cut text as GPT-2 does


def test_gpt2s_own_tokenizer_is_also_written_as_its_two_files(tmp_path: Path) -> None:
    from lightwell.tokenizer.bpe import GPT2_PATTERN, BPETokenizer
    from lightwell.tokenizer.gpt2 import load_gpt2

    learned = train_bpe(["the light in the well wanders down the well " * 20], 270)
    tokens = [learned.token_bytes(number) for number in range(269)]
    tokenizer = BPETokenizer([*tokens, b""], 269, GPT2_PATTERN, "gpt2", "<|endoftext|>")
    config = GPTConfig(**{**SMALL, "vocab_size": 270}, emb_dim=4, n_heads=1)
    folder = export_model(config, GPT(config).state_dict(), tokenizer, tmp_path / "out")
    assert import_model(folder)[2].hash == tokenizer.hash
    (folder / "tokenizer.json").unlink()
    assert load_gpt2(folder).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert transformers.GPT2Tokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"] == tokenizer.encode(TEXTS[0])


def test_what_tokenizer_json_cannot_say_has_a_file_of_its_own(tmp_path: Path) -> None:
    tokenizer = BytesTokenizer()
    config = GPTConfig(**{**SMALL, "vocab_size": tokenizer.vocab_size}, emb_dim=4, n_heads=1)
    folder = export_model(config, GPT(config).state_dict(), tokenizer, tmp_path / "out")
    assert not (folder / "tokenizer.json").exists()
    assert import_model(folder)[2].hash == tokenizer.hash
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == tokenizer.separator_id
