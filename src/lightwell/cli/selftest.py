"""`lightwell selftest`: is this device right, does resume hold here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lightwell.cli.common import JSON, make_app, show_json
from lightwell.errors import AnswerIsNo

if TYPE_CHECKING:
    from lightwell.selftest.check import Verdict

app = make_app()


@app.command(epilog="\b\nFor instance:\n  lightwell selftest")
def selftest(
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1, mps."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16: of matrix products."),
    compile: bool = typer.Option(False, "--compile", help="Check the compiled forward pass too."),
    json: bool = JSON,
) -> None:
    """Check this device against float64, operation by operation, then kill and resume a small training."""
    from lightwell.cli.progress import working
    from lightwell.runtime.device import choose_device
    from lightwell.selftest.check import selftest as check

    with working() as progress:
        verdict = check(choose_device(device, dtype), compile=compile, progress=progress)
    if json:
        show_json(verdict.to_dict())
    else:
        print_verdict(verdict)
    if not verdict.good:
        hint = f"Go around it with {' '.join(verdict.advice)}." if verdict.advice else ""
        raise AnswerIsNo("this device or system does not compute what it should.", hint)


def print_verdict(verdict: Verdict) -> None:
    from lightwell.show.table import draw_table

    lines = [
        [
            row.name,
            f"{row.error:.1e}",
            "" if row.gradient_error is None else f"{row.gradient_error:.1e}",
            f"{row.tolerance:.0e}",
            "ok" if row.good else "BAD",
        ]
        for row in verdict.rows
    ]
    print(f"{verdict.device}, against float64 on the CPU; errors as shares of the largest number:\n")
    print(draw_table(lines, headers=["operation", "error", "gradients", "allowed", ""]))
    resume = "ok, the same weights bit for bit" if verdict.resume is None else f"BAD: {verdict.resume}"
    print(f"\nKilled and resumed: {resume}.")
    bad = [row.name for row in verdict.rows if not row.good]
    print(f"Bad: {', '.join(bad)}." if bad else "The device is right.", f"({verdict.seconds:.0f} s)")
