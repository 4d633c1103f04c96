"""`lightwell runs`: what is there and how it went."""

from __future__ import annotations

import sys
from typing import Any

import typer

from lightwell.cli.common import JSON, make_app, say, show_json
from lightwell.cli.result import said_of_prediction
from lightwell.errors import AnswerIsNo, UserError
from lightwell.show.terminal import wants_color

app = make_app()
NONE = "No runs in ./runs yet. Make one: lightwell pretrain TEXT --minutes 5"


@app.command(epilog="\b\nFor instance:\n  lightwell runs runs/notes-1 runs/notes-2")
def runs(
    run: list[str] = typer.Argument(None, help="Runs to look at or compare, or folders of runs; none: all in ./runs."),
    check: bool = typer.Option(False, "--check", help="Verify every file; exit 4 if one is not as it was written."),
    pin: int = typer.Option(None, metavar="STEP", help="Keep the checkpoint of this step for ever."),
    csv: bool = typer.Option(False, "--csv", help="All metrics as CSV: run, step, name, value."),
    json: bool = JSON,
) -> None:
    """List runs, show one with its curve, or compare several."""
    from lightwell.inspection import check_run, describe_runs, find_runs, pin_checkpoint, run_metrics

    if csv and (json or check):
        raise UserError(f"expected --csv or {'--json' if json else '--check'}, got both.", "Leave one of the two out.")
    if pin is not None:
        pin_checkpoint(one(run), pin)
        show_json({"pinned": pin}) if json else print(f"The checkpoint of step {pin} stays.")
        return
    if check:
        found = [row for path in find_runs(run or None) for row in check_run(path)]
        said = [f"{'ok    ' if r['good'] else 'BROKEN'} {r['path']} {r['said']}" for r in found]
        show_json(found) if json else print("\n".join(said) or NONE)
        if not all(row["good"] for row in found):
            raise AnswerIsNo(
                "not every file is as it was written.", "Of several checkpoints the newest good one is used."
            )
        return
    rows = describe_runs(run or None)
    if csv:
        import csv as table

        broken = [row for row in rows if "said" in row]
        if broken and len(broken) == len(rows):
            raise UserError(broken[0]["said"], "`lightwell runs --check` says what is broken.")
        for row in broken:
            say(f"{row['path']}: {row['said']}")
        writer = table.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["run", "step", "name", "value"])
        for path in (row["path"] for row in rows if row not in broken):
            for name, values in run_metrics(path).items():
                writer.writerows([path, step, name, value] for step, value in values)
        return
    if json:
        show_json(rows)
    elif not rows:
        print(NONE)
    else:
        print_rows(rows)
        for row in rows:
            if "said" in row:
                print(f"{row['name']}: {row['said']}")
        for row in rows if run else ():
            if (said := said_of_prediction(row["predicted"])) is not None:
                print(f"{row['name']}: {said}")
        if run:
            print_curves([row["path"] for row in rows if "said" not in row])


def one(run: list[str] | None) -> str:
    if not run or len(run) != 1:
        raise UserError("expected one run beside --pin.", "For instance: lightwell runs runs/notes-1 --pin 500")
    return run[0]


def print_rows(rows: list[dict[str, Any]]) -> None:
    from lightwell.show.table import draw_table
    from lightwell.show.units import count

    lines = []
    for row in rows:
        heldout = row["heldout"]["bits_per_byte"]
        bits = "" if heldout is None else f"{heldout:.3f}"
        lines.append([row["name"], row["state"], f"{row['step']}/{row['steps']}", count(row["parameters"]), bits])
    print(draw_table(lines, headers=["run", "state", "step", "parameters", "held-out bits/byte"]))


def print_curves(paths: list[str]) -> None:
    from lightwell.inspection import run_metrics
    from lightwell.show.curve import draw_curve

    series: dict[str, Any] = {}
    for path in paths:
        metrics = run_metrics(path)
        label = f"{path} " if len(paths) > 1 else ""
        both = {"loss": "training loss", "heldout.loss": "held-out loss, of a part"}
        names = both if len(paths) == 1 else {"loss": "loss"}
        series |= {label + said: metrics[name] for name, said in names.items() if metrics.get(name)}
    if series:
        print()
        print(draw_curve(series, x_label="step", y_label="nats per token", color=wants_color(sys.stdout)))
