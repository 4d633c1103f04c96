"""Our models and transformers', the same weights: logits and gradients equal, both directions."""

import json
import warnings

import pytest
import torch

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.errors import FormatError
from lightwell.interop import names
from lightwell.interop.huggingface import compare_with_transformers, export_model, import_model
from lightwell.model.build import GPT

transformers = pytest.importorskip("transformers")

GPT2S = {
    "three heads": GPTConfig(vocab_size=61, context_length=16, emb_dim=24, n_heads=3, n_layers=2),
    "odd hidden, bias": GPTConfig(
        vocab_size=50, context_length=12, emb_dim=20, n_heads=2, n_layers=3, hidden_dim=36, qkv_bias=True
    ),
    "untied": GPTConfig(vocab_size=33, context_length=8, emb_dim=12, n_heads=3, n_layers=1, tie_embeddings=False),
}
QWENS = {
    "grouped heads": ModernConfig(vocab_size=61, context_length=16, emb_dim=24, n_heads=6, n_kv_heads=2, n_layers=2),
    "wide heads, untied": ModernConfig(
        vocab_size=50, context_length=12, emb_dim=20, n_heads=3, n_kv_heads=1, head_dim=10, n_layers=2, hidden_dim=28,
        rope_theta=500.0, norm_eps=1e-5, tie_embeddings=False,
    ),
}  # fmt: skip
CONFIGS = GPT2S | QWENS


def random_model(config):
    model = GPT(config, torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from the special values of an initialisation, biases too
        for n, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n)) * 0.1)
    return model.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1e-6)


def losses_and_gradients(config, ours, theirs):
    ids = torch.randint(config.vocab_size, (3, config.context_length), generator=torch.Generator().manual_seed(1))
    logits = ours(ids)
    close(logits, theirs(ids).logits)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    torch.nn.functional.cross_entropy(theirs(ids).logits.flatten(0, 1), ids.flatten()).backward()
    expected = names.to_theirs(config, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, gradient in expected.items():
        if name.endswith("c_attn.bias") and not config.qkv_bias:
            continue  # theirs has one where ours has none
        close(gradient, gradients[name])
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_through_transformers(name, tmp_path):
    config = CONFIGS[name]
    model = random_model(config)
    folder = export_model(config, model.state_dict(), None, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses_and_gradients(config, model, theirs)
    found = compare_with_transformers(folder, model)
    assert found.equal
    assert "through transformers" in found.verdict


@pytest.mark.parametrize("name", CONFIGS)
def test_a_round_trip_is_exact(name, tmp_path):
    config = CONFIGS[name]
    model = random_model(config)
    back, state, tokenizer = import_model(export_model(config, model.state_dict(), None, tmp_path / "out"))
    assert tokenizer is None
    copy = GPT(back)
    copy.load_state_dict(state)
    for (name_a, a), (name_b, b) in zip(model.state_dict().items(), copy.state_dict().items(), strict=True):
        assert name_a == name_b
        assert torch.equal(a, b)


def test_their_gpt2_through_us(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=18, n_layer=2, n_head=3, n_inner=30)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    config, state, _ = import_model(tmp_path / "theirs")
    assert (config.family, config.qkv_bias, config.hidden_dim) == ("gpt2", True, 30)
    ours = GPT(config).eval()
    ours.load_state_dict(state)
    losses_and_gradients(config, ours, theirs)


def test_their_qwen3_through_us(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=3, head_dim=8, max_position_embeddings=16, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    config, state, _ = import_model(tmp_path / "theirs")
    ours = GPT(config).eval()
    ours.load_state_dict(state)
    losses_and_gradients(config, ours, theirs)


@pytest.mark.parametrize(
    ("family", "setting", "word"),
    [
        ("three heads", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("three heads", {"activation_function": "relu"}, "activation_function"),
        ("three heads", {"something_new": 3}, "something_new"),
        ("three heads", {"model_type": "llama"}, "llama"),
        ("three heads", {"n_embd": None}, "emb_dim"),
        ("grouped heads", {"use_sliding_window": True}, "use_sliding_window"),
        ("grouped heads", {"attention_bias": True}, "attention_bias"),
        ("grouped heads", {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ("grouped heads", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
    ],
)
def test_a_setting_that_is_not_ours_is_refused_by_name(family, setting, word, tmp_path):
    config = CONFIGS[family]
    folder = export_model(config, random_model(config).state_dict(), None, tmp_path / "out")
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | setting), encoding="utf-8")
    with pytest.raises(FormatError, match=word):
        import_model(folder)


def test_pickles_and_missing_or_foreign_tensors_are_refused(tmp_path):
    config = GPT2S["three heads"]
    state = random_model(config).state_dict()
    folder = export_model(config, state, None, tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match="pickles can execute code"):
        import_model(folder)
    theirs = names.to_theirs(config, state)
    missing = {name: tensor for name, tensor in theirs.items() if "ln_f" not in name}
    with pytest.raises(FormatError, match="ln_f"):
        names.to_ours(config, missing)
    with pytest.raises(FormatError, match="adapter"):
        names.to_ours(config, theirs | {"adapter": torch.zeros(1)})


def test_a_folder_that_exists_is_not_written_over(tmp_path):
    with pytest.raises(FormatError, match="exists"):
        export_model(GPT2S["untied"], {}, None, tmp_path)


def test_transformers_reads_the_tokenizer_too(tmp_path):
    from lightwell.tokenizer.bpe import train_bpe

    tokenizer = train_bpe(["the wells of the village and the light\n" * 50], 300)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=16, emb_dim=12, n_heads=2, n_layers=1)
    folder = export_model(config, random_model(config).state_dict(), tokenizer, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "the light of 42 wells\n\n  end"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert import_model(folder)[2].hash == tokenizer.hash
