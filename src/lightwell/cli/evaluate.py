"""`lightwell evaluate`: how well a run predicts text."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell evaluate runs/notes-1 other-notes/")
def evaluate(
    run: str = typer.Argument(help="The run's folder."),
    text: list[str] = typer.Argument(None, help="Files and folders of text; none: the run's own held-out part."),
    quantize: str = typer.Option(None, help="Measure with int8 or bf16 weights, as for generate; CPU only."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1, mps."),
    json: bool = JSON,
) -> None:
    """Held-out loss, bits per byte and perplexity."""
    from lightwell.cli.progress import working
    from lightwell.trained import load

    with working() as progress:
        opened = load(run, device=device)
        if quantize is not None:
            opened.quantize(quantize)
        found = opened.evaluate(text or None, progress=progress)
    if json:
        show_json(found.to_dict())
    else:
        print(found)
