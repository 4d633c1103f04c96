"""`lightwell verify`: is every gradient right?"""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.errors import AnswerIsNo

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell verify runs/notes-1")
def verify(
    run: str = typer.Argument(help="The run's folder."),
    text: str = typer.Option("The light falls into the well.", help="What to run through the model."),
    seconds: float = typer.Option(None, min=0, help="Stop after about so long; what is left is not run."),
    json: bool = JSON,
) -> None:
    """Check every gradient of a run's model three ways: by rule, by finite differences, by autograd."""
    from lightwell.cli.progress import checking
    from lightwell.inside import verify_run

    with checking() as progress:
        found = verify_run(run, text, seconds=seconds, progress=progress)
    show_json(found.to_dict()) if json else print(found)
    if not found.agree:
        raise AnswerIsNo(f"a gradient is wrong: {found.worst.operation} at {found.worst.line}.")
