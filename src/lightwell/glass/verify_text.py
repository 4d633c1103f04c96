"""A verification as text for people."""

from __future__ import annotations

from collections import Counter

from lightwell.glass.noise import SAFETY
from lightwell.glass.verify import Row, Verification
from lightwell.glass.wording import say
from lightwell.show.table import draw_table

SHOWN = 20  # rows of each verdict that are listed one by one


def text(v: Verification) -> str:
    """What disagrees, row by row; what could not be checked, by reason; the count of all."""
    counts = {name: v.count(name) for name in ("agree", "disagree", "not checkable", "not run")}
    lines = [say("verify.summary", v.language, **{name.replace(" ", "_"): n for name, n in counts.items()})]
    wrong = sorted((row for row in v.rows if row.verdict == "disagree"), key=lambda row: -row.ratio)
    if wrong:
        keys = ("operation", "module", "line", "rule", "differences", "error", "noise", "reason")
        headers = [say(f"verify.header.{key}", v.language) for key in keys]
        lines.append(draw_table([_cells(row) for row in wrong[:SHOWN]], headers))
    skipped = Counter((row.verdict, row.operation, row.reason) for row in v.rows if row.verdict.startswith("not"))
    for (verdict, operation, reason), n in skipped.most_common(SHOWN):
        lines.append(f"{verdict}: {operation}{f' ({n} times)' if n > 1 else ''}: {reason}")
    worst = v.worst
    if worst is not None:
        lines.append(say("verify.yes" if v.agree else "verify.no", v.language, worst=_sentence(worst, v.language)))
    return "\n".join(lines)


def _sentence(row: Row, language: str) -> str:
    error, noise = (("-" if x is None else f"{x:.1e}") for x in (row.error, row.noise_floor))
    place = " ".join(part for part in (row.module, _line(row)) if part)
    return say("verify.row", language, operation=row.operation, place=place, error=error, noise=noise, safety=SAFETY)


def _cells(row: Row) -> list[object]:
    numbers = ["-" if x is None else f"{x:.1e}" for x in (row.rule, row.differences, row.error, row.noise_floor)]
    return [row.operation, row.module or "-", _line(row) or "-", *numbers, row.reason]


def _line(row: Row) -> str:
    return f"{row.file.rsplit('/', 1)[-1]}:{row.line}" if row.file else ""
