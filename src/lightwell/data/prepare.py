"""Text to a prepared dataset: documents, duplicates, held-out part, vocabulary, shards.

The text is read three times and never held in memory as a whole: to decide what each passage is for (`Plan`), to learn
the vocabulary from the training part alone, and to encode. The same text, options and seed give the same bytes on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightwell.data.dataset import DOCUMENTS, FORMAT, Dataset, open_dataset
from lightwell.data.plan import TRAIN, VAL, Part, Plan, make_plan
from lightwell.data.shards import ShardWriter, id_dtype, opened_by
from lightwell.data.sources import Document, collect, limit, shown
from lightwell.data.split import passages
from lightwell.errors import DataError, UserError
from lightwell.files.atomic import write_folder, write_manifest
from lightwell.files.space import require_space
from lightwell.runtime.observer import Progress
from lightwell.tokenizer.base import Tokenizer
from lightwell.tokenizer.simple import BytesTokenizer, train_characters
from lightwell.tokenizer.size import choose_vocab_size

LARGE = 1000  # tokens: such a vocabulary has some for words
SAMPLE_BYTES = 4_000_000  # of training text, to learn a vocabulary from: more changes hardly a token
ENCODED_AT_ONCE = 8_000_000  # bytes


def prepare(
    sources: Sequence[Path | str],
    out: Path,
    *,
    tokenizer: str | Tokenizer = "bpe",
    vocab_size: int | None = None,
    val: Sequence[Path | str] | None = None,
    limit_bytes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Make the dataset `out` from files and folders of text, and open it.

    tokenizer: "bpe", "bytes" or "chars", learned from the training part, or one to use as it is.
    vocab_size: the most ids a learned one may have (None: by the amount of text).
    val: text to hold out; None: a part of `sources` is.
    limit_bytes: read only so much of `sources`, and of `val`: a choice of files that `seed` decides.

    Raises DataError for text that cannot be used and if `out` exists, UserError for another kind of tokenizer,
    SpaceError if the disk is too small.
    """
    progress = progress or (lambda done, total, what: None)
    if os.path.lexists(out):
        raise DataError(
            f"expected a new folder to prepare the data in, got {out}, which exists.", "Choose another, or remove it."
        )
    read = collect(sources)
    if limit_bytes is not None:
        read = limit(read, limit_bytes, seed)
    held_out = collect(val) if val is not None else None
    if limit_bytes is not None and held_out is not None:
        held_out = limit(held_out, limit_bytes, seed)
    plan = make_plan(read, held_out, progress)
    if isinstance(tokenizer, str):
        tokenizer = _learn_tokenizer(tokenizer, vocab_size, plan, progress)
    dtype = id_dtype(tokenizer.vocab_size)
    bytes_per_token = 2 if tokenizer.vocab_size >= LARGE else 1  # at least
    require_space(Path(out), sum(plan.bytes.values()) * dtype.itemsize // bytes_per_token)
    with write_folder(Path(out)) as folder:
        splits = _write_shards(plan, tokenizer, folder, progress)
        tokenizer.save(folder)
        extra = {
            "format": FORMAT,
            "sources": [shown(Path(source)) for source in sources],
            "held_out": {"chosen": held_out is None, "sources": [shown(Path(source)) for source in val or []]},
            "limit": None if limit_bytes is None else {"bytes": limit_bytes, "seed": seed, "files": len(read.files)},
            "dtype": dtype.name,
            "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.hash},
            "splits": splits,
            "languages": dict(plan.languages.most_common()),
            "left_out": dict(plan.left_out.most_common()),
        }
        write_manifest(folder, extra)
    return open_dataset(Path(out))


def _learn_tokenizer(kind: str, vocab_size: int | None, plan: Plan, progress: Progress) -> Tokenizer:
    """A tokenizer of some kind, from a sample of the training part."""
    what = "learning the vocabulary"
    progress(0, None, what)
    if kind == "bytes":
        return BytesTokenizer()
    texts = _training_sample(plan)
    if kind == "chars":
        return train_characters(texts, vocab_size)
    if kind == "bpe":
        from lightwell.tokenizer.bpe import train_bpe  # tokenizers and tiktoken only where they are needed

        size = vocab_size or choose_vocab_size(plan.bytes[TRAIN])
        return train_bpe(texts, size, progress=lambda done, total, _: progress(done, total, what))
    raise UserError(f"expected bpe, bytes or chars as the tokenizer, got {kind!r}.")


def _training_sample(plan: Plan) -> Iterator[str]:
    """Training text, all of it or about SAMPLE_BYTES of passages, chosen by the ends of their hashes: the beginnings
    choose what is held out (split.py), so that what is left has no small ones."""
    share = min(1.0, SAMPLE_BYTES / max(1, plan.bytes[TRAIN]))
    for document, parts in plan.documents():
        for text in (document.text[part.start : part.end] for part in parts if part.split == TRAIN):
            for passage in passages(text):
                if int.from_bytes(passage.digest, "little") < share * 2 ** (8 * len(passage.digest)):
                    yield text[passage.start : passage.end].decode()


def _write_shards(plan: Plan, tokenizer: Tokenizer, folder: Path, progress: Progress) -> dict[str, dict[str, int]]:
    """Encode all documents into the shards of their splits and list them in documents.jsonl. Returns the counts."""
    dtype = id_dtype(tokenizer.vocab_size)
    done, total = 0, sum(plan.bytes.values())
    with (
        open(folder / DOCUMENTS, "x", encoding="utf-8") as listing,
        ShardWriter(folder, TRAIN, dtype) as train,
        ShardWriter(folder, VAL, dtype) as val,
    ):
        writers = {TRAIN: train, VAL: val}
        for group in _groups(plan):
            texts = [document.text[part.start : part.end] for document, part in group]
            for (document, part), text, ids in zip(group, texts, tokenizer.encode_arrays([t.decode() for t in texts])):
                writers[part.split].add(opened_by(tokenizer.separator_id, ids))
                listing.write(_line(_row(document, part, len(ids))))
                done += len(text)
            progress(done, total, "encoding")
        for row in plan.rows:
            listing.write(_line(row))
    return {
        split: {"tokens": w.tokens, "documents": w.documents, "bytes": plan.bytes[split], "shards": w.shards}
        for split, w in writers.items()
    }


def _groups(plan: Plan) -> Iterator[list[tuple[Document, Part]]]:
    """The parts of all documents in order, as many at once as are worth encoding together."""
    group, size = [], 0
    for document, parts in plan.documents():
        for part in parts:
            group.append((document, part))
            size += part.end - part.start
        if size >= ENCODED_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _row(document: Document, part: Part, tokens: int) -> dict[str, Any]:
    return {
        "split": part.split,
        "source": document.source,
        "language": document.language,
        "start": document.start + part.start,
        "bytes": part.end - part.start,
        "tokens": tokens,
        "hash": part.digest.hex(),
    }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
