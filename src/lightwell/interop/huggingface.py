"""HuggingFace folders: config.json, model.safetensors and the tokenizer's files, in and out.

Only safetensors are read: a pytorch_model.bin is a pickle, which can execute anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightwell.config.gpt import ModelConfig
from lightwell.errors import FormatError, TokenizerError
from lightwell.files.atomic import write_folder, write_json
from lightwell.files.limits import read_json
from lightwell.files.paths import safe_join
from lightwell.files.translate import os_errors
from lightwell.interop import names, settings
from lightwell.model.build import GPT
from lightwell.store.tensors import read_tensors, write_tensors
from lightwell.tokenizer.base import Tokenizer
from lightwell.tokenizer.load import load_tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOLERANCE = 1e-5  # of the largest logit


def import_model(folder: Path | str) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer | None]:
    """The config, the state dict (float32) and the tokenizer, if there is one, of a GPT-2 or Qwen3 folder.

    Raises FormatError naming the setting or tensor that cannot be reproduced, and for pickled weights.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FormatError(f"expected a model's folder with {CONFIG}, found none in {folder}.")
    with os_errors(f"read {folder}"):
        config = settings.to_ours(_json(folder / CONFIG))
        state = names.to_ours(config, _weights(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in _empty(config).state_dict().items()}
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise FormatError(f"expected {name} of shape {shapes[name]}, got {tuple(tensor.shape)}.")
    return config, state, _tokenizer(folder, config)


def export_model(config: ModelConfig, state: dict[str, Tensor], tokenizer: Tokenizer | None, out: Path) -> Path:
    """Write a folder that transformers (4 and 5) and what reads its layout can open. Returns it.

    Raises FormatError if `out` is there already.
    """
    out = Path(out)
    if out.exists():
        raise FormatError(f"expected a new folder to export to, got {out}, which exists.", "Choose another --out.")
    separator = tokenizer.separator_id if tokenizer else None
    with write_folder(out) as folder:
        write_json(folder / CONFIG, settings.to_theirs(config, separator))
        write_tensors(folder / WEIGHTS, names.to_theirs(config, state))
        if tokenizer is not None:
            tokenizer.save(folder)
            word = getattr(tokenizer, "separator", None)
            about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context_length}
            about |= {"bos_token": word, "eos_token": word, "clean_up_tokenization_spaces": False}
            write_json(folder / "tokenizer_config.json", about)
            write_json(folder / "generation_config.json", {"bos_token_id": separator, "eos_token_id": separator})
    return out


@dataclass(frozen=True)
class Comparison:
    """How far the exported model's logits lie from ours. `max_rel`: as a share of the largest logit."""

    max_abs: float
    max_rel: float
    verdict: str

    @property
    def equal(self) -> bool:
        return self.max_rel <= TOLERANCE


def compare_with_transformers(folder: Path, model: nn.Module, length: int = 32) -> Comparison:
    """Logits of random tokens from our model and from the exported folder: through transformers where it is installed,
    otherwise through our own import, and the verdict says so."""
    config: Any = model.config
    device = next(model.parameters()).device
    ids = torch.randint(
        config.vocab_size, (2, min(length, config.context_length)), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        ours = model.eval()(ids.to(device)).float().cpu()
        if find_spec("transformers"):
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging

            logging.disable_progress_bar()
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
            how = "through transformers"
        else:
            copy_config, state, _ = import_model(folder)
            copy = _empty(copy_config)
            copy.load_state_dict(state, assign=True)
            theirs = copy.eval()(ids)
            how = "round trip only, since transformers is not installed"
    largest = float((ours - theirs).abs().max())
    relative = largest / max(float(ours.abs().max()), 1e-30)
    said = "logits equal ours" if relative <= TOLERANCE else "logits DIFFER from ours"
    return Comparison(largest, relative, f"{said} to {relative:.1e} of the largest ({how})")


def _empty(config: ModelConfig) -> nn.Module:
    """The module without numbers: shapes alone, or to be filled from a file."""

    with torch.device("meta"):
        return GPT(config)


def _weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or several, without the prefix-less names and masks of old files."""
    if (folder / INDEX).is_file():
        files = sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        pickled = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
        hint = "Convert it to safetensors: pickles can execute code and are not read." if pickled else ""
        raise FormatError(f"expected {WEIGHTS} in {folder}, got {pickled[0] if pickled else 'none'}.", hint)
    found: dict[str, Tensor] = {}
    for name in files:
        found |= read_tensors(safe_join(folder, name))[0]
    if "wte.weight" in found:  # as OpenAI's weights were first published
        found = {name if name.startswith("lm_head.") else f"transformer.{name}": t for name, t in found.items()}
    masks = (".attn.bias", ".attn.masked_bias")
    return {name: tensor for name, tensor in found.items() if not name.endswith(masks)}


def _tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    try:
        tokenizer = load_tokenizer(folder)
    except TokenizerError:
        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "encoder.json")):
            return None
        raise
    if tokenizer.vocab_size != config.vocab_size:
        raise FormatError(f"expected a tokenizer of {config.vocab_size} tokens, got one of {tokenizer.vocab_size}.")
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path, error=FormatError)
    if not isinstance(content, dict):
        raise FormatError(f"expected settings in {path}, got {type(content).__name__}.")
    return content
