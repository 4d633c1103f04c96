"""tokenizer.json as HuggingFace's `tokenizers` reads and writes it, for byte-level BPE.

In it each byte is spelled as one printable character (GPT-2's way), merges are pairs, and the separator is a special
token. Ours are read by `tokenizers` and by transformers' PreTrainedTokenizerFast; of others, those are read whose ids
we reproduce exactly, and the rest refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lightwell.errors import TokenizerError
from lightwell.tokenizer.bpe import GPT2_PATTERN, PATTERN, SEPARATOR, BPETokenizer

END_OF_TEXT = "<|endoftext|>"  # the separator of GPT-2, and of Qwen
LONGEST_TOKEN = 512  # bytes; GPT-2's has 128
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _spelling() -> dict[int, str]:
    """Each byte as one character: printable Latin-1 as itself, the others from U+0100 on, in order."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {byte: chr(byte) for byte in itself} | {byte: chr(256 + place) for place, byte in enumerate(others)}


SPELL = _spelling()
_UNSPELL = {character: byte for byte, character in SPELL.items()}


def spell(token: bytes) -> str:
    return "".join(map(SPELL.__getitem__, token))


def unspell(token: str) -> bytes:
    """Undo `spell`. KeyError for a character that spells no byte."""
    return bytes(map(_UNSPELL.__getitem__, token))


def write_bpe(tokenizer: BPETokenizer) -> dict[str, Any]:
    """The content of tokenizer.json."""
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = {**tokenizer.others, tokenizer.separator: tokenizer.separator_id}
    added = sorted((token_id, name) for name, token_id in special.items())
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": name, **plain} for token_id, name in added],
        "normalizer": {"type": "NFC"} if tokenizer.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(token): rank for token, rank in tokenizer.ranks.items()},
            "merges": [[spell(left), spell(right)] for left, right in tokenizer.merges],
        },
    }


def read_bpe(content: dict[str, Any], where: str) -> BPETokenizer:
    """Undo `write_bpe`, and read what others wrote. `where` names it in errors.

    Raises TokenizerError for what we could not reproduce id for id, and for what is no tokenizer at all.
    """
    try:
        model = content["model"]
        pattern = _pattern(content["pre_tokenizer"])
        _refuse_extras(content, pattern, where)
        special = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        vocab = {token: rank for token, rank in model["vocab"].items() if token not in special}
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        nfc = content.get("normalizer") is not None
    except (KeyError, TypeError, AttributeError) as error:
        refuse(where, f"something else ({type(error).__name__}: {error})")
    return assemble(vocab, merges, special, pattern, where, nfc)


def assemble(
    vocab: dict[str, int],
    merges: Sequence[Sequence[str]],
    special: dict[str, int],
    pattern: str,
    where: str,
    nfc: bool = False,
) -> BPETokenizer:
    """A tokenizer from a vocabulary and merges as files spell them, and special tokens, of which one is the separator.

    Raises TokenizerError unless encoding with the vocabulary alone, as we do, is certain to give the ids that encoding
    with the merges gives.
    """
    separator = next((name for name in (SEPARATOR, END_OF_TEXT, *special) if name in special), None)
    if separator is None or (len(special) > 1 and separator not in (SEPARATOR, END_OF_TEXT)):
        refuse(where, f"{len(special)} special tokens, none of which is known as the separator")
    if any("\ud800" <= character <= "\udfff" for name in special for character in name):
        refuse(where, "a special token that is half a character")
    ids = [*vocab.values(), *special.values()]
    if not all(type(each) is int for each in ids) or sorted(ids) != list(range(len(ids))):
        refuse(where, "ids with gaps or twice")
    tokens = [b""] * len(ids)
    try:
        for token, rank in vocab.items():
            tokens[rank] = unspell(token)
        pairs = [(unspell(left), unspell(right)) for left, right in merges]
    except (KeyError, TypeError, ValueError):
        refuse(where, "a vocabulary that is not spelled in bytes")
    if not {bytes([byte]) for byte in range(256)} <= set(tokens) or tokens.count(b"") != len(special):
        refuse(where, "a vocabulary without all 256 bytes")
    if len(set(tokens)) != len(vocab) + 1 or max(map(len, tokens)) > LONGEST_TOKEN:
        refuse(where, f"a token twice, or one of more than {LONGEST_TOKEN} bytes")
    kind = "gpt2" if separator == END_OF_TEXT and pattern == GPT2_PATTERN else "bpe"
    others = {name: token_id for name, token_id in special.items() if name != separator}
    tokenizer = BPETokenizer(tokens, special[separator], pattern, kind, separator, others, nfc)
    if tokenizer.merges != pairs:
        refuse(where, "ids that do not follow the order of its merges")
    return tokenizer


def refuse(where: str, what: str) -> NoReturn:
    """Raise TokenizerError."""
    raise TokenizerError(
        f"expected a byte-level BPE tokenizer in {where}, got {what}.",
        "Lightwell reads its own, GPT-2's, and those of the same kind.",
    ) from None


def _refuse_extras(content: dict[str, Any], pattern: str, where: str) -> None:
    """Refuse by name what would change ids."""
    model, normalizer = content["model"], content.get("normalizer")
    if model.get("type", "BPE") != "BPE":
        refuse(where, f"a model of type {model['type']}")
    if normalizer is not None and normalizer["type"] != "NFC":
        refuse(where, f"a normalizer of type {normalizer['type']}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            refuse(where, f"{key} = {model[key]!r}")
    if pattern not in (PATTERN, GPT2_PATTERN, QWEN_PATTERN):
        refuse(where, "another way of cutting text into pieces")


def _pattern(pre: dict[str, Any]) -> str:
    """The pattern of a pre-tokenizer that ends in bytes; "" if it is none that we know."""
    if pre["type"] == "ByteLevel" and pre.get("use_regex", True) and not pre.get("add_prefix_space"):
        return GPT2_PATTERN
    if pre["type"] == "Sequence" and [part["type"] for part in pre["pretokenizers"]] == ["Split", "ByteLevel"]:
        split, to_bytes = pre["pretokenizers"]
        isolated = split.get("behavior") == "Isolated" and not split.get("invert")
        if isolated and not to_bytes.get("use_regex", True) and not to_bytes.get("add_prefix_space"):
            return split["pattern"]["Regex"]
    return ""
