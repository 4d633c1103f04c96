"""`lightwell pretrain`: text to a trained run."""

from __future__ import annotations

import time
from typing import Any

import typer

from lightwell.cli.common import JSON, Stopper, make_app, say, show_json, stop_by_signal
from lightwell.errors import UserError

# When this command was called: all that was computed since then counts against the minutes, this interpreter too.
BEGAN = time.perf_counter() - time.process_time()
app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell pretrain notes/ --minutes 5")
def pretrain(
    text: list[str] = typer.Argument(
        None, help="Files and folders of text, or a prepared dataset. None: Python's own source."
    ),
    minutes: float = typer.Option(None, help="Budget: minutes for everything together."),
    tokens: int = typer.Option(None, help="Budget: tokens to train on."),
    steps: int = typer.Option(None, help="Budget: optimizer steps."),
    preset: str = typer.Option(None, help="Sizes from the shelf (`lightwell presets`)."),
    config: str = typer.Option(None, help="A TOML file with a run's config."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Fix one key; may be repeated."),
    seed: int = typer.Option(None, help="Of all that is random (1337)."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:1, mps."),
    val: list[str] = typer.Option(None, help="Text to hold out, instead of a part of TEXT; may be repeated."),
    from_: str = typer.Option(None, "--from", metavar="RUN", help="Begin with this run's weights and tokenizer."),
    out: str = typer.Option(None, help="The run's folder (runs/<name>-<n>). An unfinished run there is continued."),
    stop_after: float = typer.Option(None, metavar="MINUTES", help="Save and stop after so many, to be resumed later."),
    profile: bool = typer.Option(
        False, "--profile", help="Profile ten steps: a table, and lightwell-trace.json for Chrome."
    ),
    force: bool = typer.Option(False, "--force", help="Continue the run in --out though it was asked for otherwise."),
    json: bool = JSON,
) -> None:
    """Train a GPT on text: the best model that this machine can make in the time."""
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    from lightwell.api import pretrain as train
    from lightwell.cli.progress import TrainingProgress, working
    from lightwell.cli.result import show_result

    request: dict[str, Any] = {
        "minutes": minutes, "tokens": tokens, "steps": steps, "preset": preset, "config": config, "settings": set_,
        "seed": seed, "device": device, "val": val or None,
    }  # fmt: skip
    if profile:
        from lightwell.inspection import profile_training

        others = {"--out": out, "--from": from_, "--stop-after": stop_after, "--force": force}
        if ignored := [name for name, value in others.items() if value]:
            raise UserError(f"expected --profile without {', '.join(ignored)}: it trains no run.", "Leave that out.")
        found = profile_training(text or None, **request)
        show_json(found) if json else print(found["table"])
        return
    stopper = Stopper(None if stop_after is None else 60 * stop_after, lambda: time.perf_counter() - BEGAN)
    shown = TrainingProgress()
    with stop_by_signal(stopper), working() as progress:
        run = train(
            text or None, out=out, weights_from=from_, observers=[shown], stop=stopper, say=say,
            progress=progress, force=force, began=BEGAN, **request,
        )  # fmt: skip
    show_result(run, time.perf_counter() - BEGAN, json, shown.made)
