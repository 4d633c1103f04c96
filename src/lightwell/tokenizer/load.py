"""Open any tokenizer that `save` wrote, or GPT-2's own in the layouts it is found in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightwell.errors import TokenizerError
from lightwell.files.limits import read_json
from lightwell.files.translate import os_errors
from lightwell.tokenizer.base import OUR_TOKENIZER_FILE, TOKENIZER_FILE, Tokenizer
from lightwell.tokenizer.simple import BytesTokenizer, CharTokenizer

_HINT = "Give a tokenizer.json, or the folder that holds it: a run, a prepared dataset, a model."


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a file, or in a folder (a run, a dataset, a HuggingFace model).

    Raises TokenizerError if there is none, or one that we cannot reproduce id for id.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = next((path / name for name in (OUR_TOKENIZER_FILE, TOKENIZER_FILE) if (path / name).exists()), path)
    if file.is_dir():
        from lightwell.tokenizer.gpt2 import find_pair, load_gpt2

        if find_pair(path):
            return load_gpt2(path)
    if not file.is_file():
        raise TokenizerError(f"expected a tokenizer in {path}, got none.", _HINT)
    with os_errors(f"read {file}"):
        return tokenizer_from_json(read_json(file, error=TokenizerError), str(file))


def tokenizer_from_json(content: Any, where: str) -> Tokenizer:
    """The tokenizer that the content of a tokenizer.json describes. `where` names it in errors."""
    if not isinstance(content, dict):
        raise TokenizerError(f"expected a tokenizer in {where}, got {type(content).__name__}.", _HINT)
    if "model" in content:
        from lightwell.tokenizer.huggingface import read_bpe  # only where it is needed

        return read_bpe(content, where)
    ours = content.get("lightwell")
    if not isinstance(ours, dict):
        raise TokenizerError(f"expected a tokenizer in {where}, got other JSON.", _HINT)
    if ours.get("format") != 1:
        raise TokenizerError(
            f"expected tokenizer format 1 in {where}, got {ours.get('format')!r}.", "A newer Lightwell may read it."
        )
    if ours.get("kind") == "bytes":
        return BytesTokenizer()
    if ours.get("kind") == "chars" and isinstance(content.get("characters"), str):
        return CharTokenizer(content["characters"])
    raise TokenizerError(f"expected bytes or chars in {where}, got {ours.get('kind')!r}.", _HINT)
