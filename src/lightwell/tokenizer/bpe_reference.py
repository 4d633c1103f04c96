"""Byte-pair encoding in plain Python, learning and encoding: slow, obvious, and what the fast one is compared with.

Both work on pieces, that is on text already cut by the pattern.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from lightwell.tokenizer.bpe import merge

Pair = tuple[bytes, bytes]


def learn(pieces: Iterable[bytes], n_merges: int, longest: int) -> list[Pair]:
    """The pairs that training merges, in order, as bytes; fewer than `n_merges` once no pair occurs twice.

    Of pairs that occur equally often, the one whose tokens were learned first goes first. `longest`: bytes of a token.
    """
    words = Counter(pieces)
    parts = {word: [bytes([byte]) for byte in word] for word in words}
    order = {bytes([byte]): place for place, byte in enumerate(byte_order())}
    learned: list[Pair] = []
    while len(learned) < n_merges:
        counts: Counter[Pair] = Counter()
        for word, times in words.items():
            for pair in pairwise(parts[word]):
                counts[pair] += times
        possible = [pair for pair, times in counts.items() if times >= 2 and len(pair[0] + pair[1]) <= longest]
        if not possible:
            break
        best = min(possible, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        learned.append(best)
        order[best[0] + best[1]] = len(order)
        parts = {word: _merged(part, best) for word, part in parts.items()}
    return learned


def _merged(parts: list[bytes], pair: Pair) -> list[bytes]:
    """Replace a pair wherever it stands, from the left."""
    result: list[bytes] = []
    place = 0
    while place < len(parts):
        if tuple(parts[place : place + 2]) == pair:
            result.append(pair[0] + pair[1])
            place += 2
        else:
            result.append(parts[place])
            place += 1
    return result


def encode_pieces(pieces: Iterable[bytes], ranks: dict[bytes, int]) -> list[int]:
    """The ids of some pieces, one after the other."""
    return [ranks[part] for piece in pieces for part in merge(piece, ranks)]


def encode_by_pairs(piece: bytes, merges: list[Pair]) -> list[bytes]:
    """Encode one piece by applying each learned pair in turn: another way to say the same."""
    parts = [bytes([byte]) for byte in piece]
    for pair in merges:
        parts = _merged(parts, pair)
    return parts


def byte_order() -> list[int]:
    """The bytes in the order of their ids, which is GPT-2's: printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*printable, *(byte for byte in range(256) if byte not in printable)]
