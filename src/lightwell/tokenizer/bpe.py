"""Byte-pair encoding: a vocabulary learned by merging, again and again, the two neighbours that occur most often.

A text is bytes, and at first every byte is a token. Training looks for the pair of neighbouring tokens that occurs most
often in the text and makes a new token of it; then looks again, now among the new tokens too, until the vocabulary is
full. So " the" soon is one token, " lighthouse" perhaps " light" + "house", and a name never seen a few single bytes:
any text can be written. Encoding replays the learning: of all pairs in the text that have become tokens, the one that
was learned first is merged first, until none is left. `merge` below is that, plainly.

Before any of this a pattern cuts the text into pieces: a word with the space before it, a number, punctuation, a line
break with the indentation after it. Merges stay inside a piece, so no token ends in the middle of the next word.

    "def light(well):"  ->  "def", " light", "(", "well", "):"  ->  ids

Since a token's id is its place in the order of learning, the list of tokens is the whole tokenizer.

Sources: Gage 1994 (byte-pair encoding); Sennrich et al. 2016 (for language models); Radford et al. 2019 (on bytes, with
a pattern). Two libraries do the work, each what it is faster at: `tokenizers` learns, `tiktoken` encodes.
`bpe_reference.py` does both in plain Python; tests hold all of them together.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from lightwell.errors import TokenizerError
from lightwell.tokenizer.base import Tokenizer, utf8
from lightwell.tokenizer.stretches import stretches

SEPARATOR = "<|separator|>"  # what files call it; typed in a text it is thirteen ordinary characters

# Letters, with the accents they combine with, after one space or none; one or two digits; punctuation, after one space
# or none; line breaks with blank lines before them and indentation after; the rest of the blanks, the last one left to
# the word that follows it. Every character is in one of them, whatever the language.
PATTERN = r" ?[\p{L}\p{M}]+|\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

NEVER = sys.maxsize  # the rank of what is not a token
LARGEST = 1_000_000  # tokens; the memory is asked for before the learning begins
LEARNED_LENGTH = 32  # bytes of the longest token we learn: no vocabulary needs lines of dashes


def merge(piece: bytes, ranks: dict[bytes, int], below: int = NEVER) -> list[bytes]:
    """Encode one piece, the plain way: of all neighbours that make a token, merge those whose token was learned first
    (of several, the leftmost), until there are none.

    ranks: token -> place in the order of learning. below: use only what was learned before that place.
    """
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        rank, place = min((ranks.get(a + b, NEVER), place) for place, (a, b) in enumerate(pairwise(parts)))
        if rank >= below:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


class BPETokenizer(Tokenizer):
    """A byte-level BPE vocabulary: `tokens` in the order of learning, the 256 bytes among them, b"" for the separator.

    pattern: how text is cut into pieces. kind: "bpe", or "gpt2" for OpenAI's. separator: what files call it.
    Only with other projects' tokenizers: `others`, special tokens that no text encodes to and that decode to nothing,
    and `nfc`, that text is put into Unicode's normal form C first (of which then the round trip is exact).
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        separator_id: int,
        pattern: str = PATTERN,
        kind: str = "bpe",
        separator: str = SEPARATOR,
        others: dict[str, int] | None = None,
        nfc: bool = False,
    ) -> None:
        super().__init__(tokens, separator_id)
        self.pattern, self.kind, self.separator = pattern, kind, separator
        self.others, self.nfc = others or {}, nfc
        self.ranks = {token: rank for rank, token in enumerate(tokens) if token}

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The two tokens that each longer token was made of, in the order of learning.

        They are what remains of a token when its own bytes are encoded with all that was learned before it. Raises
        TokenizerError if that is not two.

        This is also why both libraries give the same ids. One remembers that "t" + "he" makes "the", the other merges
        any two neighbours that spell "the". But whenever two neighbours do so in some text, nothing has yet been
        merged across their ends, so between these ends happened what happens to "the" alone; which ends in one pair.
        """
        pairs = []
        for token, rank in self.ranks.items():
            if len(token) > 1:
                parts = merge(token, self.ranks, below=rank)
                if len(parts) != 2:
                    raise TokenizerError(f"expected each token to be made of two earlier ones, got {token!r}.")
                pairs.append((parts[0], parts[1]))
        return pairs

    def encode_array(self, text: str) -> np.ndarray:
        return self.encode_arrays([text])[0]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.nfc:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        parts = [list(stretches(utf8(text), self._blanks)) for text in texts]
        todo = [part for each in parts for part in each]
        if len(todo) <= 8:
            encoded = [self._encode_stretch(part) for part in todo]
        else:
            with ThreadPoolExecutor(os.cpu_count()) as threads:  # both libraries let other threads run meanwhile
                encoded = list(threads.map(self._encode_stretch, todo))
        rest = iter(encoded)
        nothing = np.empty(0, dtype=np.uint32)
        return [np.concatenate([nothing, *(next(rest) for _ in each)]) for each in parts]

    def _encode_stretch(self, stretch: tuple[bytes, bool]) -> np.ndarray:
        data, has_long_piece = stretch
        if has_long_piece:
            return np.array(self._encoder_of_long_pieces.encode(data.decode()).ids, dtype=np.uint32)
        return self._encoder.encode_to_numpy(data.decode(), allowed_special=frozenset(), disallowed_special=())

    @cached_property
    def _encoder(self) -> Any:
        import tiktoken

        special = {self.separator: self.separator_id}  # known by name, allowed nowhere: typed, it is ordinary text
        return tiktoken.Encoding(self.kind, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=special)

    @cached_property
    def _encoder_of_long_pieces(self) -> Any:
        """`tokenizers`: slower, but without a limit to the length of a piece."""
        from tokenizers import Tokenizer as Library

        library = Library.from_str(json.dumps(self.to_json()))
        library.encode_special_tokens = True  # a separator in the text is text
        return library

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "pattern": self.pattern, "nfc": self.nfc}

    @property
    def _blanks(self) -> bytes:
        """Where `stretches` may cut: foreign patterns keep a line break together with punctuation before it."""
        return b" \n" if self.pattern in (PATTERN, GPT2_PATTERN) else b" "

    def to_json(self) -> dict[str, Any]:
        from lightwell.tokenizer.huggingface import write_bpe

        return write_bpe(self)


def train_bpe(
    texts: Iterable[str], vocab_size: int, progress: Callable[[int, int | None, str], None] | None = None
) -> BPETokenizer:
    """Learn a vocabulary from some texts: at most `vocab_size` ids, of which 256 are the bytes and one the separator;
    fewer if no pair of neighbours occurs twice any more. Raises TokenizerError unless `vocab_size` is from 257 to a
    million.
    """
    from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    from lightwell.tokenizer.huggingface import SPELL, read_bpe

    if not 257 <= vocab_size <= LARGEST:
        raise TokenizerError(
            f"expected a vocabulary of 257 (256 bytes, a separator) to {LARGEST:,} tokens, got {vocab_size:,}."
        )
    library = Library(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=list(SPELL.values()),
        max_token_length=LEARNED_LENGTH,
        show_progress=False,
    )
    library.train_from_iterator(_in_stretches(texts, progress), trainer)
    library.add_special_tokens([AddedToken(SEPARATOR, special=True, normalized=False)])
    return read_bpe(json.loads(library.to_str()), "what was learned")


def _in_stretches(texts: Iterable[str], progress: Callable[[int, int | None, str], None] | None) -> Iterator[str]:
    """The texts in parts of a size that the library can work on in parallel.

    What might be a very long piece is cut anywhere, since learning from one takes the square of its length.
    """
    done = 0
    for text in texts:
        for data, has_long_piece in stretches(utf8(text), longest=2048):
            done += len(data)
            if progress is not None:
                progress(done, None, "learning the vocabulary")
            part = data.decode()
            size = 256 if has_long_piece else len(part)
            yield from (part[start : start + size] for start in range(0, len(part), size))
    if progress is not None:
        progress(done, done, "learning the vocabulary")
