"""What becomes of each piece of text: training, held out, or left out because it is there already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lightwell.data.sources import Document, Sources
from lightwell.data.split import Passage, choose_held_out, digest_of, passages
from lightwell.errors import DataError

Progress = Callable[[int, int | None, str], None]

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Part:
    """A stretch of a document, in bytes from `start` to before `end`, that becomes a document of a split."""

    split: str
    start: int
    end: int
    digest: bytes


@dataclass
class Plan:
    """What becomes of each document of some sources, in the order in which they are read."""

    sources: list[Sources]
    parts: list[list[Part]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)  # what was left out and why
    bytes: Counter[str] = field(default_factory=Counter)  # by split
    languages: Counter[str] = field(default_factory=Counter)  # bytes by language

    @property
    def left_out(self) -> Counter[str]:
        """How many files and passages were left out, by reason."""
        return Counter(row["left_out"] for row in self.rows)

    def all_parts(self, split: str) -> Iterator[Part]:
        """The parts of a split, in order."""
        return (part for parts in self.parts for part in parts if part.split == split)

    def documents(self) -> Iterator[tuple[Document, list[Part]]]:
        """All documents with their parts, read again. Raises DataError if one has changed since the plan was made."""
        texts = (document for sources in self.sources for document in sources.documents())
        for parts, digest in zip(self.parts, self.digests):
            document = next(texts, None)
            if document is None or digest_of(document.text) != digest:
                name = "a file" if document is None else document.source
                raise DataError(f"expected {name} to stay as it is while it is read, got a change.", "Try again.")
            yield document, parts


def make_plan(sources: Sources, val: Sources | None, progress: Progress) -> Plan:
    """Read everything once and decide. Documents that occur twice are kept once; nothing held out is trained on.

    Raises DataError if there is too little text, or nothing left to train on beside what is held out.
    """
    plan = Plan([sources] if val is None else [sources, val])
    cuts: list[list[Passage]] = []  # of each document; none for one that is left out
    named_for_val: list[bool] = []
    seen: set[bytes] = set()
    done, total = 0, sum(part.n_bytes for part in plan.sources)
    for split, document in _all(plan.sources):
        digest = digest_of(document.text)
        plan.digests.append(digest)
        named_for_val.append(split == VAL)
        if digest in seen and split == TRAIN:
            plan.rows.append(_left_out(document, 0, len(document.text), "the same text stands elsewhere"))
            cuts.append([])
        else:
            cuts.append(passages(document.text) if document.text.strip() else [])
        seen.add(digest)
        done += len(document.text)
        progress(done, total, "reading")
    if val is None:
        held_out = choose_held_out(cuts)
    else:
        held_out = {passage.digest for cut, for_val in zip(cuts, named_for_val) if for_val for passage in cut}
    _assign(plan, cuts, named_for_val, held_out)
    for split in (TRAIN, VAL):
        if not plan.bytes[split]:
            what = "train on" if split == TRAIN else "hold out"
            raise DataError(f"expected text to {what}, got none beside the rest.", "Add text, or another --val.")
    return plan


def _assign(plan: Plan, cuts: list[list[Passage]], named_for_val: list[bool], held_out: set[bytes]) -> None:
    """Give each passage its split; neighbours of one split become one part."""
    documents = (document for _, document in _all(plan.sources))
    taken: set[bytes] = set()  # held-out passages that are in already
    for document, cut, for_val in zip(documents, cuts, named_for_val):
        parts: list[Part] = []
        for passage in cut:
            split = VAL if for_val or passage.digest in held_out else TRAIN
            repeated = split == VAL and passage.digest in taken
            foreign = split == VAL and not for_val and any(named_for_val)  # stands in the text that --val named
            if repeated or foreign:
                why = "held out already" if repeated else "stands in the held-out text"
                plan.rows.append(_left_out(document, passage.start, passage.end, why))
                continue
            if split == VAL:
                taken.add(passage.digest)
            if parts and parts[-1].split == split and parts[-1].end == passage.start:
                parts[-1] = replace(parts[-1], end=passage.end)
            else:
                parts.append(Part(split, passage.start, passage.end, b""))
            plan.bytes[split] += passage.n_bytes
            plan.languages[document.language] += passage.n_bytes
        plan.parts.append([replace(part, digest=digest_of(document.text[part.start : part.end])) for part in parts])


def _all(sources: list[Sources]) -> Iterator[tuple[str, Document]]:
    """Every document with the split that its source is for; the second source is the held-out one."""
    for split, group in zip((TRAIN, VAL), sources):
        for document in group.documents():
            yield split, document


def _left_out(document: Document, start: int, end: int, why: str) -> dict[str, Any]:
    return {"left_out": why, "source": document.source, "start": document.start + start, "bytes": end - start}
