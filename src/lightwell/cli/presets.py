"""`lightwell presets`: the shelf."""

from __future__ import annotations

import json
from typing import Any

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.command(
    epilog="\b\nFor instance:\n  lightwell presets nano > mine.toml\n  lightwell pretrain notes/ --config mine.toml"
)
def presets(
    name: str = typer.Argument(None, help="One of them, as TOML."),
    explain: bool = typer.Option(
        False, "--explain", help="What each key means, costs, and what doubling it does; without a name: of all keys."
    ),
    json: bool = JSON,
) -> None:
    """List the presets, or print one as TOML."""
    from lightwell.inspection import explain_preset, list_presets, preset_toml

    if explain:
        rows = explain_preset(name)
        show_json(rows) if json else print_keys(rows)
    elif name is None:
        rows = list_presets()
        if json:
            show_json(rows)
            return
        from lightwell.show.table import draw_table
        from lightwell.show.units import count

        lines = [
            [r["name"], r["family"], count(r["parameters"]), r["n_layers"], r["emb_dim"], r["context_length"]]
            for r in rows
        ]
        print(draw_table(lines, headers=["preset", "family", "parameters", "layers", "width", "context"]))
    elif json:
        from lightwell.config.presets import preset

        show_json(preset(name))
    else:
        print(preset_toml(name), end="")


def print_keys(rows: list[dict[str, Any]]) -> None:
    """Each key as `--set` and a config take it, and what is said of it."""
    if "cost" in rows[0]:
        print("Memory is that of a training step in float32. What a key costs is against its smallest value.\n")
    for row in rows:
        value = "decided for the run" if row["value"] is None else json.dumps(row["value"], ensure_ascii=False)
        print(f"{row['key']} = {value}\n  {row['meaning']}")
        if "cost" in row:
            print(f"  Costs: {row['cost']}\n  Doubled: {row['doubled']}\n")
