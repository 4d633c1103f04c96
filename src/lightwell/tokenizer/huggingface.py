"""Reading byte-level BPE from a tokenizer.json of HuggingFace's: what it must be for our ids to be its ids."""

from __future__ import annotations

from typing import Any

from lightwell.errors import TokenizerError
from lightwell.tokenizer.bpe import GPT2_PATTERN, SPELL

_UNSPELL = {character: byte for byte, character in SPELL.items()}


def read_bpe(content: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a BPETokenizer. Raises TokenizerError naming what it cannot reproduce."""

    def refuse(what: str) -> TokenizerError:
        return TokenizerError(
            f"expected a byte-level BPE tokenizer in {where}, got {what}.", "It cannot be reproduced."
        )

    model = content["model"]
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise refuse(f"a model of type {model.get('type') if isinstance(model, dict) else model!r}")
    if content.get("normalizer"):
        raise refuse(f"a normalizer ({content['normalizer'].get('type')})")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise refuse(f"{key} = {model[key]!r}")
    pattern = _pattern(content.get("pre_tokenizer") or {})
    if pattern is None:
        raise refuse("another way of cutting text into pieces")
    try:
        vocab = {_bytes(token): i for token, i in model["vocab"].items() if not _is_added(content, token)}
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        merges = [(_bytes(left), _bytes(right)) for left, right in pairs]
        added = [(str(entry["content"]), int(entry["id"])) for entry in content.get("added_tokens", [])]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise refuse(f"a vocabulary that does not fit together ({error})") from None
    if len(added) != 1:
        raise refuse(f"{len(added)} special tokens instead of one")
    return assemble(vocab, merges, added[0], pattern, refuse)


def assemble(
    vocab: dict[bytes, int], merges: list[tuple[bytes, bytes]], separator: Any, pattern: str, refuse: Any
) -> Any:
    """Check that ids stand in the order of merging, as the encoder needs, and put the parts together."""
    ids = sorted([*vocab.values(), separator[1]])
    if ids != list(range(len(ids))):
        raise refuse("ids with gaps or twice")
    if any(bytes([byte]) not in vocab for byte in range(256)):
        raise refuse("a vocabulary without all 256 bytes")
    learned = [vocab.get(left + right, -1) for left, right in merges]
    if learned != sorted(set(learned)) or (learned and learned[0] < 256) or len(learned) != len(vocab) - 256:
        raise refuse("ids that do not follow the order of merging")
    tokens = [b""] * len(ids)
    for token, i in vocab.items():
        tokens[i] = token
    return {
        "tokens": tokens,
        "merges": merges,
        "separator_id": separator[1],
        "pattern": pattern,
        "kind": "gpt2" if pattern == GPT2_PATTERN else "bpe",
        "separator": separator[0],
    }


def _bytes(spelled: str) -> bytes:
    return bytes(_UNSPELL[character] for character in spelled)


def _is_added(content: dict[str, Any], token: str) -> bool:
    return any(entry.get("content") == token for entry in content.get("added_tokens", []))


def _pattern(pre: dict[str, Any]) -> str | None:
    """The pattern of a pre-tokenizer that ends in bytes, or None if it is none that we know."""
    if pre.get("type") == "ByteLevel" and pre.get("use_regex", True) and not pre.get("add_prefix_space"):
        return GPT2_PATTERN
    parts = pre.get("pretokenizers", [])
    if pre.get("type") == "Sequence" and [part.get("type") for part in parts] == ["Split", "ByteLevel"]:
        split, spell = parts
        plain = split.get("behavior") == "Isolated" and not split.get("invert")
        if plain and not spell.get("use_regex") and not spell.get("add_prefix_space"):
            return split.get("pattern", {}).get("Regex")
    return None
