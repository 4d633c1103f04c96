"""GPT-2's own tokenizer, from the files it is found in: a list of ids and one of merges, or tokenizer.json.

Source: Radford et al. 2019, and the files that were published with the model.
"""

from __future__ import annotations

from pathlib import Path

from lightwell.errors import TokenizerError
from lightwell.files.limits import read_json
from lightwell.files.translate import os_errors
from lightwell.tokenizer.base import TOKENIZER_FILE
from lightwell.tokenizer.bpe import GPT2_PATTERN, BPETokenizer
from lightwell.tokenizer.huggingface import END_OF_TEXT, assemble, read_bpe, refuse

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """The two files of GPT-2's vocabulary in a folder, or None."""
    for ids, merges in PAIRS:
        if (folder / ids).is_file() and (folder / merges).is_file():
            return folder / ids, folder / merges
    return None


def load_gpt2(path: Path | str) -> BPETokenizer:
    """GPT-2's tokenizer from a folder, or from one of its files. Raises TokenizerError if it is not there."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    pair = find_pair(folder)
    with os_errors(f"read {folder}"):
        if pair and path.name != TOKENIZER_FILE:
            return _from_pair(*pair)
        file = folder / TOKENIZER_FILE
        if file.is_file():
            return read_bpe(read_json(file, error=TokenizerError), str(file))
    names = ", or ".join(f"{ids} and {merges}" for ids, merges in PAIRS)
    raise TokenizerError(f"expected {names}, or {TOKENIZER_FILE} in {folder}, found none.")


def _from_pair(ids_file: Path, merges_file: Path) -> BPETokenizer:
    ids = read_json(ids_file, error=TokenizerError)
    if not isinstance(ids, dict) or END_OF_TEXT not in ids:
        refuse(str(ids_file), f"no {END_OF_TEXT}")
    try:
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        refuse(str(merges_file), "no UTF-8")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    return assemble(ids, merges, {END_OF_TEXT: ids.pop(END_OF_TEXT)}, GPT2_PATTERN, str(ids_file))
