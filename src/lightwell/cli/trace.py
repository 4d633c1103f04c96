"""`lightwell trace`: what happens inside a run's model on a text."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, say, show_json

app = make_app()


@app.command(epilog='For instance:  lightwell trace runs/notes-1 --text "Once upon a time" --save step.html')
def trace(
    run: str = typer.Argument(help="The run's folder."),
    text: str = typer.Option("The light falls into the well.", help="What to run through the model."),
    save: str = typer.Option(None, metavar="FILE", help="The whole step: .html (a page), .json, or .dot (Graphviz)."),
    json: bool = JSON,
) -> None:
    """Tokens, attention, what each layer would predict, losses, and the gradients of it all."""
    from lightwell.api import load
    from lightwell.inside import look_inside, trace_step

    opened = load(run, device="cpu")
    if save:
        trace_step(opened, text).save(save)
        say(f"The step is in {save}.")
    found = look_inside(opened, text)
    show_json(found.to_dict()) if json else print(found.draw())
