"""What becomes of each piece of text: training, held out, or left out because it is there already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lightwell.data.sources import Document, Sources
from lightwell.data.split import Passage, choose_held_out, digest_of, passages
from lightwell.errors import DataError
from lightwell.runtime.observer import Progress

TRAIN, VAL = "train", "val"

Cut = tuple[Document, list[Passage]]  # a document without its text, and its passages; none if it is left out


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
    read: int = 0  # bytes

    @property
    def left_out(self) -> Counter[str]:
        """How many files and passages were left out, by reason."""
        return Counter(row["left_out"] for row in self.rows)

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
    """Read everything once and decide. Documents that occur twice are kept once; no passage that is held out is
    trained on. The same words cut elsewhere, as in a file that holds another file, are not noticed.

    Raises DataError if there is too little text, or nothing left to train on beside what is held out.
    """
    plan = Plan([sources] if val is None else [sources, val])
    total = sum(each.n_bytes for each in plan.sources)
    own: list[Cut] = []
    held_out: list[Cut] = []
    for each, cuts in zip(plan.sources, (own, held_out)):
        plan.rows += [{"left_out": reason, "source": path} for path, reason in each.skipped]
        seen: set[bytes] = set()
        for document in each.documents():
            digest = digest_of(document.text)
            if digest in seen:
                plan.rows.append(_left_out("the same text is there already", document, 0, len(document.text)))
            cuts.append((replace(document, text=b""), [] if digest in seen else passages(document.text)))
            seen.add(digest)
            plan.digests.append(digest)
            plan.read += len(document.text)
            progress(plan.read, total, "reading")
    if val is None:
        held = choose_held_out([cut for _, cut in own])
        _assign(plan, own, held, to_val=True)
    else:
        held = {passage.digest for _, cut in held_out for passage in cut}
        _assign(plan, own, held, to_val=False)
        _assign(plan, held_out, held, to_val=True)
    if not plan.bytes[TRAIN]:
        raise DataError("expected text to train on beside what is held out, got none.", "Add text, or another --val.")
    if not plan.bytes[VAL]:
        raise DataError("expected text in the held-out part, got none.", "Name other text with --val, or none at all.")
    return plan


def _assign(plan: Plan, cuts: list[Cut], held: set[bytes], *, to_val: bool) -> None:
    """Give each passage its split. What is held out goes to val once; a second time, or elsewhere, it is left out."""
    placed: set[bytes] = set()
    for document, cut in cuts:
        parts = []
        for passage in cut:
            is_held = passage.digest in held
            if is_held and (not to_val or passage.digest in placed):
                plan.rows.append(_left_out("it is held out", document, passage.start, passage.end))
                continue
            if is_held:
                placed.add(passage.digest)
            split = VAL if is_held else TRAIN
            parts.append(Part(split, passage.start, passage.end, passage.digest))
            plan.bytes[split] += passage.n_bytes
            plan.languages[document.language] += passage.n_bytes
        plan.parts.append(_joined(parts))


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of the same split as one."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last and (last.split, last.end) == (part.split, part.start):
            joined[-1] = Part(last.split, last.start, part.end, digest_of(last.digest + part.digest))
        else:
            joined.append(part)
    return joined


def _left_out(reason: str, document: Document, start: int, end: int) -> dict[str, Any]:
    place = {"start": document.start + start, "bytes": end - start}
    return {"left_out": reason, "source": document.source, "language": document.language, **place}
