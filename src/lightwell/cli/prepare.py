"""`lightwell prepare`: text to a dataset that runs can share."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell prepare notes/ --out notes-data --vocab-size 2048")
def prepare(
    text: list[str] = typer.Argument(None, help="Files and folders of text. None: Python's own source."),
    out: str = typer.Option(..., help="The dataset's folder."),
    vocab_size: int = typer.Option(None, min=257, help="The most tokens that the vocabulary may have."),
    tokenizer: str = typer.Option(
        "bpe", help="bpe, bytes, chars, or a tokenizer to use as it is (a file, run or dataset)."
    ),
    val: list[str] = typer.Option(None, help="Text to hold out, instead of a part of TEXT."),
    limit_bytes: int = typer.Option(None, min=1, help="Read at most so much, a choice of files."),
    seed: int = typer.Option(0, help="Of the choice of files."),
    json: bool = JSON,
) -> None:
    """Make documents, vocabulary and token shards from text."""
    from lightwell.cli.progress import working
    from lightwell.inspection import prepare_dataset

    with working() as progress:
        dataset = prepare_dataset(
            text or None, out, tokenizer=tokenizer, vocab_size=vocab_size, val=val or None, limit_bytes=limit_bytes,
            seed=seed, progress=progress,
        )  # fmt: skip
    if json:
        show_json({"dataset": str(dataset.path), "manifest": dataset.manifest})
    else:
        print(dataset.describe())
