"""`lightwell trace`: what happens inside a run's model on a text."""

from __future__ import annotations

import sys

import typer

from lightwell.cli.common import JSON, make_app, say, show_json
from lightwell.errors import UserError
from lightwell.show.terminal import terminal_width, wants_color

app = make_app()


@app.command(epilog='\b\nFor instance:\n  lightwell trace runs/notes-1 --text "Once upon a time" --save step.html')
def trace(
    run: str = typer.Argument(help="The run's folder."),
    text: str = typer.Option("The light falls into the well.", help="What to run through the model."),
    head: list[str] = typer.Option([], metavar="L.H", help="Draw this head's attention (layer.head); several: again."),
    save: str = typer.Option(None, metavar="FILE", help="The whole step: .html (a page), .json, or .dot (Graphviz)."),
    seconds: float = typer.Option(60, min=0, help="How long --save may check gradients; what is left is not run."),
    json: bool = JSON,
) -> None:
    """Tokens, attention, what each layer would predict, losses, and the gradients of it all."""
    from lightwell.cli.progress import checking
    from lightwell.inside import check_step, look_inside, save_step
    from lightwell.trained import load

    heads = [_layer_and_head(words) for words in head]
    opened = load(run, device="cpu")
    found = look_inside(opened, text)
    found.require_heads(heads)
    drawn = "" if json else found.draw(wants_color(sys.stdout), terminal_width(), heads)
    if save:
        with checking() as progress:
            save_step(opened, text, save, seconds=seconds, progress=progress)
    show_json(found.to_dict()) if json else print(drawn)
    if not found.finite:
        say(f"\n{check_step(opened, text).origins}")
    if save:
        say(f"\nThe step is in {save}.")


def _layer_and_head(words: str) -> tuple[int, int]:
    try:
        layer, head = words.split(".")
        return int(layer), int(head)
    except ValueError:
        raise UserError(f"expected a head as layer.head, such as 1.2, got {words!r}.", "Try --head 1.1.") from None
