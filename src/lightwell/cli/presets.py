"""`lightwell presets`: the shelf."""

from __future__ import annotations

import typer

from lightwell.cli.common import JSON, make_app, show_json

app = make_app()


@app.command(
    epilog="\b\nFor instance:\n  lightwell presets nano > mine.toml\n  lightwell pretrain notes/ --config mine.toml"
)
def presets(
    name: str = typer.Argument(None, help="One of them, as TOML."),
    explain: bool = typer.Option(False, "--explain", help="What each key means, costs, and what doubling it does."),
    json: bool = JSON,
) -> None:
    """List the presets, or print one as TOML."""
    from lightwell.inspection import explain_preset, list_presets, preset_toml

    if name is None:
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
    elif explain:
        rows = explain_preset(name)
        if json:
            show_json(rows)
            return
        print("Memory is that of a training step in float32. What a key costs is against its smallest value.\n")
        for row in rows:
            print(f"{row['key']} = {row['value']}\n  {row['meaning']}")
            print(f"  Costs: {row['cost']}\n  Doubled: {row['doubled']}\n")
    elif json:
        from lightwell.config.presets import preset

        show_json(preset(name))
    else:
        print(preset_toml(name), end="")
