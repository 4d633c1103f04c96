"""`lightwell plan`: what a run would take, before anything runs."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell plan --preset gpt2-124m --tokens 1000000000")
def plan(
    text: list[str] = typer.Argument(None, help="The text that would be trained on; none: Python's own source."),
    minutes: float = typer.Option(None, help="Budget in minutes."),
    tokens: int = typer.Option(None, help="Budget in tokens."),
    steps: int = typer.Option(None, help="Budget in steps."),
    preset: str = typer.Option(None, help="Sizes from the shelf; none: the planner chooses."),
    config: str = typer.Option(None, help="A TOML file with a run's config."),
    set_: list[str] = typer.Option([], "--set", metavar="SECTION.KEY=VALUE", help="Fix one key; may be repeated."),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:1, mps."),
    val: list[str] = typer.Option(None, help="Text to hold out, instead of a part of TEXT."),
    json: bool = JSON,
) -> None:
    """Parameters, memory, FLOPs, tokens and time, before anything runs."""
    from lightwell.cli.progress import working
    from lightwell.inspection import plan_summary

    with working() as progress:
        found = plan_summary(
            text or None, minutes=minutes, tokens=tokens, steps=steps, preset=preset, config=config, settings=set_,
            device=device, val=val or None, progress=progress,
        )  # fmt: skip
    if json:
        show_json(found)
        return
    from lightwell.show.table import draw_table
    from lightwell.show.units import count, duration, plural, size, thousands

    print("Parameters")
    print(draw_table([[name, thousands(value)] for name, value in found["parameters"].items()]))
    print("\nMemory of a training step (estimated)")
    print(draw_table([[name, size(value)] for name, value in found["memory_bytes"].items()]))
    print(f"\n{count(found['flops_per_token'])}FLOP per token (forward and backward).")
    n_steps, per_step = plural(found["steps"], "step"), thousands(found["tokens_per_step"])
    print(f"{count(found['tokens'])} tokens in {n_steps} of {per_step}.")
    how = {"exact": "as asked"}.get(found["kinds"]["seconds"], found["kinds"]["seconds"])
    print(f"{duration(found['seconds'])} on this machine ({found['device']}, {how}).")
    for reason in found["reasons"]:
        print(reason)
