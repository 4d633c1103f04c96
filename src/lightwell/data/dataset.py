"""A prepared dataset: what `prepare` wrote, opened, described, and compared with another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightwell.data.shards import TokenStream
from lightwell.errors import DataError
from lightwell.files.hashing import sha256_json
from lightwell.files.verify import read_manifest, verify_manifest, verify_size
from lightwell.show.table import draw_table
from lightwell.show.units import plural, size, thousands
from lightwell.tokenizer.base import Tokenizer
from lightwell.tokenizer.load import load_tokenizer

FORMAT = 1
DOCUMENTS = "documents.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Dataset:
    """`manifest`: counts, hashes, splits, tokenizer, where the text came from."""

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)

    @cached_property
    def train(self) -> TokenStream:
        return self._stream("train")

    @cached_property
    def val(self) -> TokenStream:
        return self._stream("val")

    @property
    def val_bytes(self) -> int:
        return self.manifest["splits"]["val"]["bytes"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' hashes and the tokenizer's: equal for data that trains alike."""
        shards = {name: entry for name, entry in self.manifest["files"].items() if name.endswith((".bin", ".idx"))}
        return sha256_json({"shards": shards, "tokenizer": self.manifest["tokenizer"]["sha256"]})

    def describe(self) -> str:
        """What is in it, as text for a person."""
        splits = self.manifest["splits"]
        rows = [[name, s["documents"], thousands(s["tokens"]), size(s["bytes"])] for name, s in splits.items()]
        tokenizer = self.manifest["tokenizer"]
        sources = self.manifest["sources"]
        lines = [
            f"{self.path}: {', '.join(sources[:3])}{' ...' if len(sources) > 3 else ''}",
            draw_table(rows, headers=["split", "documents", "tokens", "text"]),
            f"vocabulary: {thousands(tokenizer['vocab_size'])} tokens ({tokenizer['kind']})",
            "languages: " + ", ".join(f"{name} {size(n)}" for name, n in self.manifest["languages"].items()),
        ]
        if limit := self.manifest["limit"]:
            lines.append(
                f"only {plural(limit['files'], 'file')} were read, up to {size(limit['bytes'])}, chosen by the seed"
            )
        lines += [f"left out: {plural(n, 'document')} ({why})" for why, n in self.manifest["left_out"].items()]
        return "\n".join(lines)

    def _stream(self, split: str) -> TokenStream:
        about = self.manifest["splits"][split]
        return TokenStream.open(self.path, split, about["shards"], np.dtype(self.manifest["dtype"]), about["bytes"])


def is_dataset(path: Path) -> bool:
    """Whether `path` looks like a prepared dataset."""
    return (path / MANIFEST).is_file() and (path / "train-00000.bin").is_file()


def open_dataset(path: Path | str, verify: bool = False) -> Dataset:
    """Open a prepared dataset; sizes are checked, with `verify` every byte.

    Raises DataError if it is not one or of an unknown format, DamagedError naming the file that is not as written.
    """
    path = Path(path)
    if not is_dataset(path):
        raise DataError(
            f"expected a prepared dataset in {path}, found none.", "`lightwell prepare TEXT --out` makes one."
        )
    manifest = verify_manifest(path) if verify else read_manifest(path)
    if manifest.get("format") != FORMAT:
        raise DataError(f"expected a dataset of format {FORMAT} in {path}, got format {manifest.get('format')!r}.")
    for name in manifest["files"]:
        verify_size(path, manifest, name)
    return Dataset(path, manifest)


def diff_datasets(before: Dataset, after: Dataset) -> dict[str, Any]:
    """What differs: the tokenizer, each split's counts, and the documents (by content) that only one of them has."""
    found: dict[str, Any] = {"equal": before.fingerprint == after.fingerprint, "changes": []}
    for key in ("tokenizer", "splits", "languages"):
        if before.manifest[key] != after.manifest[key]:
            found["changes"].append({"key": key, "before": before.manifest[key], "after": after.manifest[key]})
    rows = [{row["hash"]: row for row in _documents(dataset) if "hash" in row} for dataset in (before, after)]
    for name, mine, other in (("only_before", *rows), ("only_after", *reversed(rows))):
        found[name] = [
            {k: row[k] for k in ("source", "split", "bytes")} for key, row in mine.items() if key not in other
        ]
    return found


def _documents(dataset: Dataset) -> list[dict[str, Any]]:
    import json

    with open(dataset.path / DOCUMENTS, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
