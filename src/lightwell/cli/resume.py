"""`lightwell resume`: go on with a run."""

from __future__ import annotations

import time

import typer

from lightwell.cli.common import JSON, Stopper, make_app, say, stop_by_signal

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell resume runs/notes-1")
def resume(
    run: str = typer.Argument(help="The run's folder."),
    extend_steps: int = typer.Option(None, min=1, help="Train for so many steps beyond the end."),
    stop_after: float = typer.Option(None, metavar="MINUTES", help="Save and stop after so many minutes."),
    json: bool = JSON,
) -> None:
    """Go on with a run, exactly as if it had never stopped."""
    began = time.perf_counter()
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    from lightwell.api import resume as go_on
    from lightwell.cli.progress import TrainingProgress
    from lightwell.cli.result import show_result

    stopper = Stopper(None if stop_after is None else 60 * stop_after, lambda: time.perf_counter() - began)
    shown = TrainingProgress()
    with stop_by_signal(stopper):
        trained = go_on(run, extend_steps=extend_steps, observers=[shown], stop=stopper, say=say)
    show_result(trained, time.perf_counter() - began, json, shown.made)
