"""`lightwell diagnose`: is training healthy?"""

from __future__ import annotations

import sys

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.show.terminal import terminal_width, wants_color

app = make_app()


@app.command(epilog='\b\nFor instance:\n  lightwell diagnose runs/notes-1 --text "Once upon a time"')
def diagnose(
    run: str = typer.Argument(help="The run's folder."),
    text: str = typer.Option(
        None,
        help="Look at one step of the model on this text as well: where a NaN or an infinity is born, and how far each "
        "gradient in bfloat16 and float32 is from float64.",
    ),
    json: bool = JSON,
) -> None:
    """What the measurements of a run's layers say: what is wrong, since when, how sure, what to change."""
    from lightwell.inside import check_step, diagnose_run, load

    step = check_step(load(run, device="cpu"), text) if text is not None else None
    found = diagnose_run(run)
    if json:
        show_json(found.to_dict() | ({} if step is None else {"step": step.to_dict()}))
        return
    print(found)
    if step is not None:
        print(f"\nOne step on {text!r}\n\n{step.draw(wants_color(sys.stdout), terminal_width())}")
