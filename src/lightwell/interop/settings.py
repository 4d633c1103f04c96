"""HuggingFace's config.json and ours, both ways. A setting that we do not reproduce is refused by name, not guessed."""

from __future__ import annotations

from typing import Any

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.errors import ConfigError, FormatError

OURS = "lightwell"  # a key of our own in their file: what their layout cannot say

# Settings without influence on the numbers of a forward pass.
_HARMLESS = """architectures model_type transformers_version torch_dtype dtype use_cache bos_token_id eos_token_id
    pad_token_id initializer_range output_past task_specific_params gradient_checkpointing tokenizer_class name_or_path
    return_dict output_hidden_states output_attentions chunk_size_feed_forward id2label label2id problem_type
    is_encoder_decoder max_window_layers sliding_window keys_to_ignore_at_inference lightwell"""
# Settings that we have in one form only: what they must be where they are given.
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    "qwen3": {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
        "rope_scaling": (None,),
    },
}
_READ = {
    "gpt2": """vocab_size n_positions n_ctx n_embd n_layer n_head n_inner resid_pdrop embd_pdrop attn_pdrop
        tie_word_embeddings""",
    "qwen3": """vocab_size max_position_embeddings hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim rms_norm_eps rope_theta rope_parameters attention_dropout tie_word_embeddings
        layer_types""",
}


def to_theirs(config: ModelConfig, separator_id: int | None) -> dict[str, Any]:
    """The config.json of a model, for transformers 4 and 5 alike."""
    shared = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "torch_dtype": "float32",
        "dtype": "float32",
        "use_cache": True,
        "initializer_range": 0.02,
    }
    if isinstance(config, GPTConfig):
        return shared | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.context_length,
            "n_embd": config.emb_dim,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.mlp_dim,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "resid_pdrop": config.drop_rate,
            "embd_pdrop": config.drop_rate,
            "attn_pdrop": config.drop_rate,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            OURS: {"qkv_bias": config.qkv_bias},
        }
    return shared | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "max_position_embeddings": config.context_length,
        "hidden_size": config.emb_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.size_per_head,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # read by transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # and by 5
        "attention_bias": False,
        "attention_dropout": config.drop_rate,
        "use_sliding_window": False,
        OURS: {"drop_rate": config.drop_rate},
    }


def to_ours(raw: dict[str, Any]) -> ModelConfig:
    """Our config for their config.json. Raises FormatError naming the setting that we do not reproduce."""
    kind = raw.get("model_type")
    if kind not in _FIXED:
        raise FormatError(f"expected a model of type gpt2 or qwen3, got {kind!r}.", "Other layouts cannot be imported.")
    known = {*_HARMLESS.split(), *_FIXED[kind], *_READ[kind].split()}
    for key, value in raw.items():
        if key in _FIXED[kind] and value not in _FIXED[kind][key]:
            raise FormatError(f"expected {key} = {_FIXED[kind][key][0]!r}, got {value!r}.", "It cannot be reproduced.")
        if key not in known and not key.startswith(("_", "summary_")):
            raise FormatError(f"expected settings that are known, got {key} = {value!r}.", "It cannot be reproduced.")
    try:
        return _gpt2(raw) if kind == "gpt2" else _qwen3(raw)
    except KeyError as missing:
        raise FormatError(f"expected {missing.args[0]} in the model's config.json, found none.") from None
    except ConfigError as error:
        raise FormatError(f"expected a config that fits together: {error.message}") from None


def _gpt2(raw: dict[str, Any]) -> GPTConfig:
    rates = {raw.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(rates) > 1:
        raise FormatError(f"expected one dropout rate, got {sorted(rates)} for resid, embd and attn_pdrop.")
    return GPTConfig(
        vocab_size=raw["vocab_size"],
        context_length=raw["n_positions"],
        emb_dim=raw["n_embd"],
        n_heads=raw["n_head"],
        n_layers=raw["n_layer"],
        hidden_dim=raw.get("n_inner"),
        drop_rate=float(rates.pop()),
        qkv_bias=bool(raw.get(OURS, {}).get("qkv_bias", True)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", True)),
    )


def _qwen3(raw: dict[str, Any]) -> ModernConfig:
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise FormatError(f"expected rope_type = 'default', got {rope['rope_type']!r}.", "It cannot be reproduced.")
    if set(raw.get("layer_types") or []) - {"full_attention"}:
        raise FormatError(
            f"expected full_attention in every layer, got layer_types = {sorted(set(raw['layer_types']))}."
        )
    return ModernConfig(
        vocab_size=raw["vocab_size"],
        context_length=raw["max_position_embeddings"],
        emb_dim=raw["hidden_size"],
        n_heads=raw["num_attention_heads"],
        n_kv_heads=raw.get("num_key_value_heads"),
        head_dim=raw.get("head_dim"),
        n_layers=raw["num_hidden_layers"],
        hidden_dim=raw["intermediate_size"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta", 10_000.0)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        drop_rate=float(raw.get(OURS, {}).get("drop_rate", 0.0)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )
