"""`lightwell import`: another project's model as a run at step 0."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.files.paths import command

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell import gpt2-hf --out runs/gpt2")
def import_(
    folder: str = typer.Argument(help="A HuggingFace folder: config.json, model.safetensors, tokenizer files."),
    out: str = typer.Option(..., help="The run's folder to make."),
    json: bool = JSON,
) -> None:
    """Bring in a GPT-2 or Qwen3 model."""
    from lightwell.inspection import import_run

    run = import_run(folder, out)
    found = {"run": str(run.path), "family": run.model_config.family, "vocab_size": run.tokenizer.vocab_size}
    show_json(found) if json else print(f"{run.path}: {found['family']}. Try: {command('generate', run.path, 'Once')}")
