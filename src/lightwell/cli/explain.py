"""`lightwell explain`: where a gradient comes from."""

from __future__ import annotations

import sys

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.errors import UserError
from lightwell.show.terminal import wants_color

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell explain --example neuron")
def explain(
    run: str = typer.Argument(None, help="The run's folder."),
    parameter: str = typer.Argument(None, help="Whose gradient, e.g. blocks.0.mlp.up.weight."),
    index: str = typer.Option(None, metavar="I,J", help="One element of it, e.g. 3,5."),
    text: str = typer.Option("The light falls into the well.", help="What to run through the model."),
    depth: int = typer.Option(1, min=1, help="How many operations deep to follow the largest terms."),
    top: int = typer.Option(5, min=1, help="How many terms to list."),
    example: str = typer.Option(None, help="neuron, mlp, attention or block: backpropagation by hand, no run needed."),
    json: bool = JSON,
) -> None:
    """Where a gradient comes from, factor by factor, with the real numbers."""
    if example:
        from lightwell.glass.by_hand import example as make_example

        shown = make_example(example)
        show_json(shown.to_dict()) if json else print(shown.draw(color=wants_color(sys.stdout)))
        return
    if run is None or parameter is None:
        raise UserError("expected a run and a parameter, or --example.", "Try: lightwell explain --example neuron")
    from lightwell.inside import explain_parameter

    try:
        place = tuple(int(number) for number in index.split(",")) if index else None
    except ValueError:
        raise UserError(
            f"expected whole numbers as --index, such as 3,5, got {index!r}.", "One for each dimension."
        ) from None
    found = explain_parameter(run, parameter, place, text, depth=depth, top=top)
    show_json(found.to_dict()) if json else print(found)
