"""What a model is asked to work on, checked before it starts: a mistake is one sentence, not a stack of them."""

from __future__ import annotations

from torch import Tensor

from lightwell.config.gpt import ModelConfig
from lightwell.errors import UserError
from lightwell.model.cache import KVCache


def known_vocab_size(config: ModelConfig) -> int:
    """`config.vocab_size`; UserError if it was left to a tokenizer that has not spoken yet."""
    if config.vocab_size is None:
        raise UserError(
            "expected a config with a vocab_size to build a model from, got None",
            'Take the tokenizer\'s: config.model_copy(update={"vocab_size": tokenizer.vocab_size}).',
        )
    return config.vocab_size


def check_inputs(
    config: ModelConfig, ids: Tensor, targets: Tensor | None, cache: KVCache | None, documents: Tensor | None
) -> None:
    """Raises UserError unless shapes, lengths and combinations are such that a forward pass has a meaning.

    Looks at shapes only: values would have to be fetched from the device. `check_ids` looks at those.
    """
    if ids.dim() != 2 or ids.shape[1] == 0 or ids.is_floating_point():
        raise UserError(
            f"expected token ids as whole numbers in a (B, T) tensor, got {ids.dtype} of shape {tuple(ids.shape)}",
            "One sequence is ids[None].",
        )
    for name, other in (("targets", targets), ("documents", documents)):
        if other is not None and other.shape != ids.shape:
            raise UserError(f"expected {name} of the shape of ids {tuple(ids.shape)}, got {tuple(other.shape)}")
    if cache is None:
        if ids.shape[1] > config.context_length:
            raise UserError(
                f"expected at most context_length = {config.context_length} tokens, got {ids.shape[1]}",
                "Shorten the text, or use its last tokens only.",
            )
        return
    if documents is not None:
        raise UserError("expected documents or a cache, got both", "Documents are for training on packed windows.")
    if cache.length + ids.shape[1] > cache.max_length:
        raise UserError(
            f"expected at most {cache.max_length} tokens in the cache, got {cache.length} and {ids.shape[1]} more",
            "Reset the cache and fill it with the last tokens.",
        )


def check_ids(config: ModelConfig, ids: Tensor) -> None:
    """Raises UserError if an id is outside the vocabulary. Waits for the device, so not called in `forward`."""
    if ids.numel() and not 0 <= (low := int(ids.min())) <= (high := int(ids.max())) < known_vocab_size(config):
        wrong = low if low < 0 else high
        raise UserError(
            f"expected token ids from 0 to {known_vocab_size(config) - 1}, got {wrong}",
            "The text was probably encoded with another tokenizer than the model's.",
        )
