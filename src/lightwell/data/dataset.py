"""A prepared dataset: what `prepare` wrote, opened, verified, described, and compared with another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightwell.data.shards import TokenStream, id_dtype, shard_name
from lightwell.errors import DamagedError, DataError
from lightwell.files.atomic import MANIFEST
from lightwell.files.hashing import sha256_json
from lightwell.files.limits import parse_json
from lightwell.files.paths import command, safe_join
from lightwell.files.translate import os_errors
from lightwell.files.verify import read_manifest, verify_manifest, verify_size
from lightwell.show.table import draw_table
from lightwell.show.units import count, plural, size, thousands
from lightwell.tokenizer.base import TOKENIZER_FILE, Tokenizer
from lightwell.tokenizer.load import load_tokenizer

FORMAT = 1
DOCUMENTS = "documents.jsonl"
_HINT = "Prepare the text again."


@dataclass(frozen=True)
class Dataset:
    """An opened dataset. `train` and `val` are streams of ids, mapped from the disk and read as they are used.

    `manifest`: counts, hashes, splits, tokenizer, where the text came from.
    """

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the ids. Raises DamagedError if it is not the one they were made with."""
        tokenizer = load_tokenizer(safe_join(self.path, TOKENIZER_FILE))
        if tokenizer.hash != self.manifest["tokenizer"]["sha256"]:
            raise DamagedError(f"expected the tokenizer that {self.path} was made with, got another.", _HINT)
        return tokenizer

    @cached_property
    def train(self) -> TokenStream:
        return self._stream("train")

    @cached_property
    def val(self) -> TokenStream:
        return self._stream("val")

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the hashes of the shards and the tokenizer: equal for data that trains alike."""
        files = self.manifest["files"]
        shards = {name: files[name]["sha256"] for name in files if name.endswith((".bin", ".idx"))}
        return sha256_json({"shards": shards, "tokenizer": self.manifest["tokenizer"]["sha256"]})

    def text(self, split: str) -> bytes:
        """The original text of a split, its documents joined without anything between them."""
        stream = self.train if split == "train" else self.val
        tokens = np.array([self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)], dtype=object)
        return b"".join(tokens[stream.read(0, len(stream))])

    def documents(self) -> Iterator[dict[str, Any]]:
        """The rows of documents.jsonl: with "split", what is in the dataset; with "left_out", what is not, and why."""
        path = safe_join(self.path, DOCUMENTS)
        with open(path, "rb") as file:
            for line in file:
                yield parse_json(line, str(path))

    def summary(self) -> str:
        """What there is to train on and what is held out, in a sentence."""
        train, val = self.manifest["splits"]["train"], self.manifest["splits"]["val"]
        vocab_size = self.manifest["tokenizer"]["vocab_size"]
        return (
            f"To train on: {size(train['bytes'])}, {count(train['tokens'])} tokens; held out: {size(val['bytes'])};"
            f" a vocabulary of {thousands(vocab_size)}.{self._left_out()}"
        )

    def _left_out(self) -> str:
        """A sentence on what was found but is not in it, if there is any."""
        n = sum(self.manifest["left_out"].values())
        parts = plural(n, "file or passage", "files and passages")
        return f" Left out: {parts} (`{command('data', 'show', self.path)}` says why)." if n else ""

    def describe(self) -> str:
        """What is in it, as text for a person."""
        about = self.manifest
        sources, tokenizer, limit = about["sources"], about["tokenizer"], about["limit"]
        rows = [[name, s["documents"], thousands(s["tokens"]), size(s["bytes"])] for name, s in about["splits"].items()]
        lines = [
            f"{self.path}: {', '.join(sources[:3])}{f' and {len(sources) - 3} more' if len(sources) > 3 else ''}",
            draw_table(rows, headers=["split", "documents", "tokens", "text"]),
            f"vocabulary: {thousands(tokenizer['vocab_size'])} tokens ({tokenizer['kind']})",
            "languages: " + ", ".join(f"{name} {size(n)}" for name, n in about["languages"].items()),
        ]
        if limit:
            files = plural(limit["files"], "file")
            lines.append(f"read: only {files}, up to {size(limit['bytes'])}, chosen by the seed {limit['seed']}")
        lines += [f"left out, {why}: {thousands(n)}" for why, n in about["left_out"].items()]
        lines.append(f"fingerprint: {self.fingerprint}")
        return "\n".join(lines)

    def _stream(self, split: str) -> TokenStream:
        counts = self.manifest["splits"][split]
        dtype = id_dtype(self.manifest["tokenizer"]["vocab_size"])
        stream = TokenStream.open(self.path, split, counts["shards"], dtype, counts["bytes"])
        if len(stream) != counts["tokens"]:
            raise DamagedError(f"expected {counts['tokens']} {split} tokens in {self.path}, got {len(stream)}.", _HINT)
        return stream


def open_dataset(path: Path | str, verify: bool = False) -> Dataset:
    """Open a prepared dataset; `verify` reads all of it and compares the hashes (sizes are compared always).

    Raises DataError if there is none, or one of a newer format; DamagedError if a file is missing or changed.
    """
    path = Path(path)
    if not is_dataset(path):
        raise DataError(
            f"expected a prepared dataset in {path}, found none.", "`lightwell prepare TEXT --out` makes one."
        )
    with os_errors(f"read {path}"):
        manifest = verify_manifest(path) if verify else read_manifest(path)
        if manifest.get("format") != FORMAT or "splits" not in manifest:
            raise DataError(
                f"expected a dataset of format {FORMAT} in {path}, got {manifest.get('format', 'something else')!r}.",
                _HINT,
            )
        for name in manifest["files"]:
            verify_size(path, manifest, name)
        for split in ("train", "val"):
            for number in range(manifest["splits"][split]["shards"]):
                verify_size(path, manifest, shard_name(split, number, "bin"))
                verify_size(path, manifest, shard_name(split, number, "idx"))
    return Dataset(path, manifest)


def is_dataset(path: Path | str) -> bool:
    """Whether a folder looks like a prepared dataset, rather than like text to prepare."""
    return all((Path(path) / name).is_file() for name in (MANIFEST, TOKENIZER_FILE, DOCUMENTS))


def diff_datasets(before: Dataset, after: Dataset) -> dict[str, Any]:
    """What differs: `equal` (training on them is the same), `changes` of tokenizer, splits and languages, and documents
    that only one has (`only_before`, `only_after`) or that changed their split (`moved`).

    Documents are compared by content: where they came from does not matter.
    """
    changes = [
        {"key": key, "before": before.manifest[key], "after": after.manifest[key]}
        for key in ("tokenizer", "splits", "languages")
        if before.manifest[key] != after.manifest[key]
    ]
    old, new = ({row["hash"]: row for row in each.documents() if row.get("split")} for each in (before, after))
    return {
        "equal": before.fingerprint == after.fingerprint,
        "changes": changes,
        "only_before": [_brief(row) for digest, row in old.items() if digest not in new],
        "only_after": [_brief(row) for digest, row in new.items() if digest not in old],
        "moved": [
            {**_brief(new[digest]), "was": row["split"]}
            for digest, row in old.items()
            if digest in new and new[digest]["split"] != row["split"]
        ],
    }


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("source", "split", "bytes")}
