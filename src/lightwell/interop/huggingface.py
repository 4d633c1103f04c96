"""HuggingFace folders: a model brought in, written out, and compared with what transformers makes of it.

    config.json                       settings.py
    model.safetensors                 names.py; or several files, with model.safetensors.index.json
    tokenizer.json                    and vocab.json with merges.txt for GPT-2's own
    tokenizer_config.json             so that AutoTokenizer reads it
    generation_config.json            which token begins and ends a text

Files are checked before they are read, and nothing in them is executed: weights in pickles (.bin) are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightwell.config.gpt import ModelConfig
from lightwell.errors import FormatError
from lightwell.files.atomic import write_folder, write_json
from lightwell.files.limits import read_json, safetensors_header
from lightwell.files.paths import safe_join
from lightwell.files.translate import os_errors
from lightwell.interop.names import NOT_LEARNED, Tensors, to_ours, to_theirs
from lightwell.interop.settings import read_settings, write_settings
from lightwell.model.build import GPT
from lightwell.model.checks import known_vocab_size
from lightwell.model.gpt2 import GPT2
from lightwell.model.modern import Modern
from lightwell.store.tensors import read_tensors, write_tensors
from lightwell.tokenizer.base import OUR_TOKENIZER_FILE, TOKENIZER_FILE, Tokenizer
from lightwell.tokenizer.load import load_tokenizer

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
TOLERANCE = 1e-5  # of the largest logit, in float32


@dataclass(frozen=True)
class Comparison:
    """How far two models' logits are apart: the largest difference, the same relative to the largest logit, whether
    that is within float32's rounding (1e-5), and a sentence for people."""

    max_abs: float
    max_rel: float
    equal: bool
    verdict: str


# --- in ---------------------------------------------------------------------------------------------------------------


def import_model(folder: Path) -> tuple[ModelConfig, Tensors, Tokenizer | None]:
    """The config, the weights as our state dict (float32), and the tokenizer of a HuggingFace folder, None if it has
    no tokenizer files.

    Raises FormatError, naming the setting or the weight, for a model that we could not run exactly; TokenizerError for
    a tokenizer that we could not reproduce.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FormatError(
            f"expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, got {folder} without {CONFIG_FILE}."
        )
    with os_errors(f"read {folder}"):
        config = read_settings(read_json(folder / CONFIG_FILE, error=FormatError), str(folder / CONFIG_FILE))
        weights = to_ours(config, _read_weights(folder))
    _check_shapes(config, weights)
    tokenizer = _read_tokenizer(folder)
    if tokenizer is not None and tokenizer.vocab_size > known_vocab_size(config):
        raise FormatError(
            f"expected a tokenizer of at most {config.vocab_size} tokens, the model's, got {tokenizer.vocab_size}."
        )
    return config, weights, tokenizer


def _read_weights(folder: Path) -> Tensors:
    """All tensors of a folder, from one file or several."""
    if (folder / INDEX_FILE).is_file():
        return _read_several(folder)
    if (folder / WEIGHTS_FILE).is_file():
        return _read_file(folder / WEIGHTS_FILE)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise FormatError(
            f"expected {WEIGHTS_FILE} in {folder}, got {pickles[0]}: pickles can execute code and are not read.",
            "If you trust it, convert it with transformers: model.save_pretrained(folder).",
        )
    raise FormatError(f"expected {WEIGHTS_FILE} in {folder}, found none.")


def _read_several(folder: Path) -> Tensors:
    index = read_json(folder / INDEX_FILE, error=FormatError)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise FormatError(f"expected weight_map, file names by weight, in {folder / INDEX_FILE}, got something else.")
    tensors: Tensors = {}
    for file in sorted(set(places.values())):
        path = safe_join(folder, file)
        if path.suffix != ".safetensors" or not path.is_file():
            raise FormatError(f"expected a safetensors file {path}, as {INDEX_FILE} says, found none.")
        tensors |= _read_file(path)
    if tensors.keys() != places.keys():
        wrong = sorted(tensors.keys() ^ places.keys())[0]
        raise FormatError(f"expected the weights that {INDEX_FILE} lists, got other ones: {wrong}.")
    return tensors


def _read_file(path: Path) -> Tensors:
    header, _ = safetensors_header(path, error=FormatError)
    for name, entry in header.items():
        if name == "__metadata__" or (NOT_LEARNED.fullmatch(name) and entry["dtype"] in ("BOOL", "U8")):
            continue
        if entry["dtype"] not in ("F64", "F32", "F16", "BF16"):
            raise FormatError(
                f"expected floating-point weights in {path}, got {name} of type {entry['dtype']}.",
                "Quantised models cannot be imported; take the original one.",
            )
    return read_tensors(path)[0]


def _check_shapes(config: ModelConfig, weights: Tensors) -> None:
    try:
        with torch.device("meta"):
            expected = GPT(config).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:
        raise FormatError(f"expected sizes of a model in {CONFIG_FILE}, got: {str(error).splitlines()[0]}.") from error
    for name, tensor in expected.items():
        wanted, found = tuple(tensor.shape), tuple(weights[name].shape)
        if wanted != found:
            raise FormatError(f"expected {name} of shape {wanted}, as {CONFIG_FILE} says, got {found}.")


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    names = (OUR_TOKENIZER_FILE, TOKENIZER_FILE, "vocab.json", "encoder.json")
    return load_tokenizer(folder) if any((folder / name).is_file() for name in names) else None


# --- out --------------------------------------------------------------------------------------------------------------


def export_model(config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer | None, out: Path) -> Path:
    """Write a folder that transformers reads; returns it. `weights`: our state dict.

    Raises UserError if `out` exists already, SpaceError if the disk is full.
    """
    out = Path(out)
    separator_id = tokenizer.separator_id if tokenizer is not None else None
    with write_folder(out) as folder:
        write_json(folder / CONFIG_FILE, write_settings(config, separator_id))
        write_json(folder / "generation_config.json", {"bos_token_id": separator_id, "eos_token_id": separator_id})
        write_tensors(folder / WEIGHTS_FILE, to_theirs(config, dict(weights)))
        if tokenizer is not None:
            _write_tokenizer(tokenizer, config.context_length, folder)
    return out


def _write_tokenizer(tokenizer: Tokenizer, context_length: int, folder: Path) -> None:
    if tokenizer.kind not in ("bpe", "gpt2"):
        tokenizer.save(folder / OUR_TOKENIZER_FILE)
        return
    tokenizer.save(folder / TOKENIZER_FILE)
    content = tokenizer.to_json()
    separator = next(token["content"] for token in content["added_tokens"] if token["id"] == tokenizer.separator_id)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "bos_token": separator,
        "eos_token": separator,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    if tokenizer.kind == "gpt2":  # older programs know these two files, and GPT-2's way of cutting text
        vocab = {**content["model"]["vocab"], separator: tokenizer.separator_id}
        merges = ["#version: 0.2", *(" ".join(pair) for pair in content["model"]["merges"]), ""]
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")


# --- the proof --------------------------------------------------------------------------------------------------------


def compare_with_transformers(folder: Path, model: GPT2 | Modern) -> Comparison:
    """The logits of `model` against those of the folder it was written to, on random tokens, in float32.

    transformers reads the folder where it is installed. Otherwise we read it back ourselves, and the verdict says
    "round trip only": that proves the numbers, not that others understand them as we do.
    """
    config = model.config
    T = min(config.context_length, 64)
    ids = torch.randint(known_vocab_size(config), (2, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = _in_float32(model)(ids)
        try:
            theirs, how = _logits_in_transformers(Path(folder), ids), "through transformers"
        except ImportError as error:
            theirs, how = _logits_read_back(Path(folder), ids), f"round trip only: {str(error).splitlines()[0]}"
    max_abs, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
    max_rel = max_abs / largest if largest else max_abs
    equal = max_rel <= TOLERANCE
    said = "logits equal ours" if equal else "logits DIFFER from ours"
    return Comparison(max_abs, max_rel, equal, f"{said} to {max_rel:.1e} of the largest ({how})")


def _in_float32(model: GPT2 | Modern) -> nn.Module:
    """A copy to compare, on the CPU, without dropout; the model stays as it is."""
    copy = GPT(model.config)
    copy.load_state_dict({name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()})
    return copy.eval()


def _logits_in_transformers(folder: Path, ids: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:  # with plain attention, not a fused kernel
        theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, attn_implementation="eager")
    finally:
        if shown:
            logging.enable_progress_bar()
    return theirs.float().eval()(input_ids=ids).logits


def _logits_read_back(folder: Path, ids: Tensor) -> Tensor:
    config, weights, _ = import_model(folder)
    model = GPT(config)
    model.load_state_dict(weights)
    return model.eval()(ids)
