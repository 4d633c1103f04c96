"""`lightwell export`: a run in the layout that other tools read."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.errors import AnswerIsNo

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell export runs/notes-1 --out notes-hf")
def export(
    run: str = typer.Argument(help="The run's folder."),
    out: str = typer.Option(..., help="The folder to make."),
    json: bool = JSON,
) -> None:
    """Write a HuggingFace folder (GPT-2 or Qwen3 layout) and compare its logits with ours."""
    from lightwell.inspection import export_run

    found = export_run(run, out)
    show_json(found) if json else print(f"{found['folder']}: {found['said']}")
    if not found["equal"]:
        raise AnswerIsNo("the exported model's logits differ from ours.", "Please report this with the run's config.")
