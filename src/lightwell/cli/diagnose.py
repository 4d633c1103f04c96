"""`lightwell diagnose`: is training healthy?"""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.command(epilog="For instance:  lightwell diagnose runs/notes-1")
def diagnose(run: str = typer.Argument(help="The run's folder."), json: bool = JSON) -> None:
    """What the measurements of a run's layers say: what is wrong, since when, how sure, what to change."""
    from lightwell.inside import diagnose_run

    found = diagnose_run(run)
    show_json(found.to_dict()) if json else print(found)
