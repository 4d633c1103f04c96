"""Byte-pair encoding: a vocabulary learned by merging, again and again, the two neighbours that occur most often.

A text is bytes. At first every byte is a token. Training counts pairs of neighbouring tokens in the text and makes a
new token of the most frequent pair; then counts again, until the vocabulary is full. Encoding replays this: within each
piece of text, the pair whose merge was learned first is merged first, until no learned pair is left. `merge` below is
that, plainly; a library does it fast, and a test holds the two together.

Before any merging a pattern cuts the text into pieces (a word with the space before it, a number, punctuation, a line
break with the indentation after it), so that no token spans two words, and frequent words stay whole.

Sources: Gage 1994 (byte-pair encoding); Sennrich et al. 2016 (for language models); Radford et al. 2019 (on bytes, with
a pattern). The library `tokenizers` trains, `tiktoken` encodes: each is the faster one at that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lightwell.errors import TokenizerError
from lightwell.tokenizer.base import Tokenizer, utf8

SEPARATOR = "<|separator|>"  # how files of other libraries name it; typed in a text it is ordinary characters

# Letters with one space before them; one or two digits; punctuation, with one space; line breaks with the indentation
# that follows; the rest of white space, of which the last space is left to the word after it.
PATTERN = r" ?[\p{L}\p{M}]+|\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHUNK = 1 << 16  # characters given to the encoder at once, cut where the pattern would cut anyway


class BPETokenizer(Tokenizer):
    """A byte-level BPE vocabulary. `merges[i]` is the pair of token ids that makes token `first_merge + i`.

    tokens: the bytes of each id, separator included (none). pattern: how text is cut into pieces. kind: "bpe" for one
    of our own, "gpt2" for OpenAI's.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]],
        separator_id: int,
        pattern: str = PATTERN,
        kind: str = "bpe",
        separator: str = SEPARATOR,
    ) -> None:
        super().__init__(tokens, separator_id)
        self.kind = kind
        self.pattern = pattern
        self.merges = list(merges)
        self.separator = separator

    def encode_array(self, text: str) -> np.ndarray:
        utf8(text)  # half a character is refused, not replaced
        encode = self._encoder.encode_to_numpy
        return np.concatenate(
            [np.empty(0, np.uint32)] + [encode(piece, disallowed_special=()) for piece in chunks(text)]
        )

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        """Each token's bytes -> its id, which is also its place in the order of merging."""
        return {token: i for i, token in enumerate(self._tokens) if i != self.separator_id}

    @cached_property
    def _encoder(self) -> Any:
        import tiktoken

        return tiktoken.Encoding(self.kind, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={})

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"pattern": self.pattern}

    def to_json(self) -> dict[str, Any]:
        """The format of HuggingFace's `tokenizers`, which spells each byte as one printable character."""
        spelled = {"".join(map(SPELL.__getitem__, token)): i for token, i in self.ranks.items()}
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        about = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": self.separator_id, "content": self.separator, **about}],
            "normalizer": None,
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
                "vocab": spelled,
                "merges": [["".join(map(SPELL.__getitem__, part)) for part in pair] for pair in self.merges],
            },
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> BPETokenizer:
        """Undo `to_json`. Raises TokenizerError for what we could not reproduce id for id."""
        from lightwell.tokenizer.huggingface import read_bpe

        return cls(**read_bpe(content, where))


def train_bpe(
    texts: Iterable[str], vocab_size: int, progress: Callable[[int, int | None, str], None] | None = None
) -> BPETokenizer:
    """Learn a vocabulary of at most `vocab_size` ids, the separator's and 256 bytes included; fewer if the text is
    too short for more. Raises TokenizerError if there is no room for them."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    if vocab_size < 257:
        raise TokenizerError(f"expected a vocabulary of at least 257 (256 bytes and a separator), got {vocab_size}.")
    library = Library(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    alphabet = sorted(SPELL.values())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False, max_token_length=32
    )
    pieces = (piece for text in texts for piece in chunks(text))
    library.train_from_iterator(pieces, trainer)
    if progress is not None:
        progress(1, 1, "learning the vocabulary")
    import json

    content = json.loads(library.to_str())["model"]
    unspell = {character: byte for byte, character in SPELL.items()}

    def to_bytes(spelled: str) -> bytes:
        return bytes(unspell[character] for character in spelled)

    by_id = sorted(content["vocab"].items(), key=lambda item: item[1])
    tokens = [to_bytes(spelled) for spelled, _ in by_id]
    merges = [(to_bytes(left), to_bytes(right)) for left, right in content["merges"]]
    return BPETokenizer([*tokens, b""], merges, separator_id=len(tokens))


def merge(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The slow, plain twin of encoding one piece: merge the neighbours learned first, until none is left."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        rank, place = min((ranks.get(parts[i] + parts[i + 1], len(ranks) + 1), i) for i in range(len(parts) - 1))
        if rank > len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


def chunks(text: str) -> Iterable[str]:
    """A text in pieces of about CHUNK characters, cut only where both patterns cut whatever stands around: between a
    letter or digit and a line break that another letter or digit follows, so that the ids are those of the whole."""
    start = 0
    while len(text) - start > CHUNK:
        end = _safe_cut(text, start + CHUNK)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _safe_cut(text: str, place: int) -> int:
    """The first place from `place` on where a piece ends for certain, or the end of the text."""
    while (place := text.find("\n", place)) != -1:
        if 0 < place < len(text) - 1 and text[place - 1].isalnum() and text[place + 1].isalpha():
            return place
        place += 1
    return len(text)


def _spelling() -> dict[int, str]:
    """Each byte as one printable character, GPT-2's way: printable Latin-1 as itself, the others from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {byte: chr(byte) for byte in itself} | {byte: chr(256 + n) for n, byte in enumerate(others)}


SPELL = _spelling()
