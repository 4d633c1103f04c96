"""`lightwell data show` and `lightwell data diff`."""

from __future__ import annotations

from typing import Any

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.show.units import plural, size

app = make_app()
NAMED = 10  # documents of each kind of difference


@app.callback(epilog="\b\nFor instance:\n  lightwell data show notes-data")
def data() -> None:
    """What is in a dataset; what differs between two."""


@app.command(epilog="\b\nFor instance:\n  lightwell data show notes-data")
def show(dataset: str = typer.Argument(help="The dataset's folder."), json: bool = JSON) -> None:
    """What is in a dataset."""
    from lightwell.data.dataset import open_dataset

    opened = open_dataset(dataset)
    show_json(opened.manifest) if json else print(opened.describe())


@app.command(epilog="\b\nFor instance:\n  lightwell data diff notes-data newer-data")
def diff(
    before: str = typer.Argument(help="A dataset."),
    after: str = typer.Argument(help="Another."),
    json: bool = JSON,
) -> None:
    """What differs between two datasets."""
    from lightwell.data.dataset import diff_datasets, open_dataset

    found = diff_datasets(open_dataset(before), open_dataset(after))
    show_json(found) if json else print(in_words(found))


def in_words(found: dict[str, Any]) -> str:
    """What `diff_datasets` found, for people."""
    if found["equal"]:
        return "Equal: to train on one is to train on the other."
    lines = ["Different."]
    for change in found["changes"]:
        lines += [f"{change['key']}:", f"  before  {change['before']}", f"  after   {change['after']}"]
    kinds = {"only_before": "only before", "only_after": "only after", "moved": "moved to the other split"}
    for key, words in kinds.items():
        rows = found[key]
        if rows:
            lines.append(f"{words}: {plural(len(rows), 'document')}")
            lines += [f"  {row['source']} ({size(row['bytes'])}, {row['split']})" for row in rows[:NAMED]]
        if len(rows) > NAMED:
            lines.append(f"  and {len(rows) - NAMED} more: --json has them all")
    return "\n".join(lines)
