"""`lightwell data show` and `lightwell data diff`."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.callback()
def data() -> None:
    """What is in a dataset; what differs between two."""


@app.command(epilog="For instance:  lightwell data show notes-data")
def show(dataset: str = typer.Argument(help="The dataset's folder."), json: bool = JSON) -> None:
    """What is in a dataset."""
    from lightwell.data.dataset import open_dataset

    opened = open_dataset(dataset)
    show_json(opened.manifest) if json else print(opened.describe())


@app.command(epilog="For instance:  lightwell data diff notes-data newer-data")
def diff(
    before: str = typer.Argument(help="A dataset."),
    after: str = typer.Argument(help="Another."),
    json: bool = JSON,
) -> None:
    """What differs between two datasets."""
    from lightwell.data.dataset import diff_datasets, open_dataset

    found = diff_datasets(open_dataset(before), open_dataset(after))
    show_json(found) if json else print(found)
