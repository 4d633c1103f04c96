"""config.json of GPT-2 and Qwen3, in both directions: what we can be, and a refusal by name of everything else.

A setting that changes the forward pass and that we do not have is an error, never a guess; so is one that we do not
know. Those that change nothing here (names of classes, generation, initialisation) are passed over by name.
Sources: GPT2Config and Qwen3Config in transformers 4 and 5. Sizes must be there; other settings that are left out
have the values that these classes give them.
"""

from __future__ import annotations

from typing import Any, NoReturn

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.errors import ConfigError, FormatError

OURS = "lightwell"  # a key of our own in config.json, for what their layout cannot say

# Without effect on the logits of a model that is read whole: bookkeeping, generation, training, other tasks' heads.
PASSED_OVER = {
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "_num_labels", "architectures",
    "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label",
    "initializer_range", "label2id", "length_penalty", "max_length", "min_length", "name_or_path",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p",
    "use_bfloat16", "use_cache",
}  # fmt: skip
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function


class _Settings:
    """The settings of a config.json; each is taken once, and what is left at the end is refused."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.left = {key: value for key, value in raw.items() if key not in PASSED_OVER}
        self.where = where

    def take(self, key: str, default: Any) -> Any:
        return self.left.pop(key, default)

    def need(self, key: str) -> Any:
        if self.left.get(key) is None:
            raise FormatError(f"expected {key} in {self.where}, found none.")
        return self.left.pop(key)

    def must_be(self, value: Any, *keys: str) -> None:
        """Each of the settings is `value`, or left out."""
        for key in keys:
            found = self.left.pop(key, value)
            if found != value:
                self.refuse(key, found, f"{key} = {value!r}")

    def refuse(self, key: str, found: Any, expected: str) -> NoReturn:
        raise FormatError(
            f"expected {expected} in {self.where}, got {key} = {str(found)[:80]!r}.",
            "Lightwell's forward pass does not have this setting, so the model would answer otherwise than it should.",
        )

    def end(self) -> None:
        for key, value in self.left.items():
            raise FormatError(
                f"expected only settings that Lightwell knows in {self.where}, got {key} = {str(value)[:80]!r}.",
                "If it does not change the model's logits, remove it from the file.",
            )


def read_settings(raw: Any, where: str) -> ModelConfig:
    """The config that a parsed config.json describes; `where` names the file in errors. Raises FormatError."""
    if not isinstance(raw, dict):
        raise FormatError(f"expected settings in {where}, got {type(raw).__name__}.")
    settings = _Settings(raw, where)
    family = settings.take("model_type", None)
    if family not in ("gpt2", "qwen3"):
        raise FormatError(f"expected model_type gpt2 or qwen3 in {where}, got {family!r}.")
    settings.must_be(False, "is_encoder_decoder", "add_cross_attention")
    settings.take("is_decoder", None)  # it is one in any case
    try:
        return _read_gpt2(settings) if family == "gpt2" else _read_qwen3(settings)
    except ConfigError as error:
        raise FormatError(f"expected sizes that fit together in {where}, got {error.message.rstrip('.')}.") from error


def write_settings(config: ModelConfig, separator_id: int | None) -> dict[str, Any]:
    """config.json, such that transformers 4 and 5 both read it."""
    common = {
        "vocab_size": config.vocab_size,
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    return common | (_write_gpt2(config) if isinstance(config, GPTConfig) else _write_qwen3(config))


# --- GPT-2 ------------------------------------------------------------------------------------------------------------

_GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}
_GPT2_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def _read_gpt2(settings: _Settings) -> GPTConfig:
    sizes = {ours: settings.need(theirs) for ours, theirs in _GPT2_SIZES.items()}
    settings.must_be(sizes["context_length"], "n_ctx")
    activation = settings.take("activation_function", "gelu_new")
    if activation not in TANH_GELU:
        settings.refuse("activation_function", activation, "activation_function = 'gelu_new'")
    settings.must_be(1e-5, "layer_norm_epsilon")
    settings.must_be(True, "scale_attn_weights")
    settings.must_be(False, "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    settings.must_be({}, "pruned_heads")
    first, *others = [settings.take(key, 0.1) for key in _GPT2_DROPOUTS]
    for key, rate in zip(_GPT2_DROPOUTS[1:], others):
        if rate != first:
            settings.refuse(key, rate, f"one rate of dropout in all three places ({', '.join(_GPT2_DROPOUTS)})")
    ours = settings.take(OURS, {"qkv_bias": True})  # a stranger's model has one
    if not isinstance(ours, dict) or ours.keys() != {"qkv_bias"}:
        settings.refuse(OURS, ours, "qkv_bias, true or false")
    config = GPTConfig(
        **sizes,
        hidden_dim=settings.take("n_inner", None),
        drop_rate=first,
        qkv_bias=ours["qkv_bias"],
        tie_embeddings=settings.take("tie_word_embeddings", True),
    )
    settings.end()
    return config


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in _GPT2_SIZES.items()},
        "n_ctx": config.context_length,
        "n_inner": config.hidden_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(_GPT2_DROPOUTS, config.drop_rate),
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        OURS: {"qkv_bias": config.qkv_bias},
    }


# --- Qwen3 ------------------------------------------------------------------------------------------------------------

_QWEN3_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_layers": "num_hidden_layers",
}


def _read_qwen3(settings: _Settings) -> ModernConfig:
    sizes = {ours: settings.need(theirs) for ours, theirs in _QWEN3_SIZES.items()}
    settings.must_be("silu", "hidden_act")
    settings.must_be(False, "attention_bias", "use_sliding_window")
    for key in ("sliding_window", "max_window_layers"):  # said even where no window is used
        settings.take(key, None)
    layers = settings.take("layer_types", None) or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        settings.refuse("layer_types", layers, "full attention in every layer")
    config = ModernConfig(
        **sizes,
        drop_rate=settings.take("attention_dropout", 0.0),
        rope_theta=_read_rope(settings),
        norm_eps=settings.take("rms_norm_eps", 1e-6),
        tie_embeddings=settings.take("tie_word_embeddings", False),
    )
    settings.end()
    return config


def _read_rope(settings: _Settings) -> Any:
    """theta, from transformers 4's `rope_theta` and `rope_scaling` or 5's `rope_parameters`."""
    said = []
    if "rope_theta" in settings.left:
        said.append(settings.take("rope_theta", None))
    for key in ("rope_scaling", "rope_parameters"):
        parameters = settings.take(key, None) or {}
        if not isinstance(parameters, dict):
            settings.refuse(key, parameters, "rotation without scaling")
        for name, value in parameters.items():
            if name == "rope_theta":
                said.append(value)
            elif name not in ("rope_type", "type") or value != "default":
                settings.refuse(f"{key}.{name}", value, "rotation without scaling")
    if not said:
        raise FormatError(f"expected rope_theta or rope_parameters in {settings.where}, found neither.")
    if any(theta != said[0] for theta in said):
        settings.refuse("rope_theta", said, "one theta")
    return said[0]


def _write_qwen3(config: ModernConfig) -> dict[str, Any]:
    resolved = {"hidden_dim": config.mlp_dim, "n_kv_heads": config.kv_heads, "head_dim": config.size_per_head}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **{theirs: resolved.get(ours, getattr(config, ours)) for ours, theirs in _QWEN3_SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # for transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # for transformers 5
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": config.drop_rate,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.n_layers,
    }
