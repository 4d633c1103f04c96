"""GPT-2's own tokenizer, from the files it is found in: vocab.json + merges.txt, or encoder.json + vocab.bpe."""

from __future__ import annotations

from pathlib import Path

from lightwell.errors import TokenizerError
from lightwell.files.limits import read_json
from lightwell.files.translate import os_errors
from lightwell.tokenizer.base import TOKENIZER_FILE
from lightwell.tokenizer.bpe import GPT2_PATTERN, SPELL, BPETokenizer
from lightwell.tokenizer.huggingface import assemble

END_OF_TEXT = "<|endoftext|>"
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """The two files of GPT-2's vocabulary in a folder, or None."""
    for ids, merges in PAIRS:
        if (folder / ids).is_file() and (folder / merges).is_file():
            return folder / ids, folder / merges
    return None


def load_gpt2(path: Path | str) -> BPETokenizer:
    """GPT-2's tokenizer from a folder, or from one of its two files. Raises TokenizerError if they are not there."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    pair = find_pair(folder)
    if pair is None:
        if (folder / TOKENIZER_FILE).is_file():
            from lightwell.tokenizer.load import load_tokenizer

            found = load_tokenizer(folder)
            if isinstance(found, BPETokenizer):
                return found
        names = " or ".join(f"{ids} and {merges}" for ids, merges in PAIRS)
        raise TokenizerError(f"expected {names} in {folder}, found neither.")

    def refuse(what: str) -> TokenizerError:
        return TokenizerError(f"expected GPT-2's vocabulary in {folder}, got {what}.")

    unspell = {character: byte for byte, character in SPELL.items()}
    with os_errors(f"read {folder}"):
        ids = read_json(pair[0], error=TokenizerError)
        lines = pair[1].read_text(encoding="utf-8").split("\n")
    try:
        separator = (END_OF_TEXT, int(ids.pop(END_OF_TEXT)))
        vocab = {bytes(unspell[c] for c in token): int(i) for token, i in ids.items()}
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        merges = [(bytes(unspell[c] for c in left), bytes(unspell[c] for c in right)) for left, right in pairs]
    except (KeyError, ValueError, AttributeError) as error:
        raise refuse(f"something else ({type(error).__name__}: {error})") from None
    return BPETokenizer(**assemble(vocab, merges, separator, GPT2_PATTERN, refuse))
