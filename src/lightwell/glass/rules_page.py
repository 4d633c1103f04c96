"""docs/rules.md: the whole table as a page to read, written from the rows themselves."""

from __future__ import annotations

from pathlib import Path

from lightwell.glass.rules import RULES, Rule
from lightwell.glass.wording import say

FAMILIES = {
    "rules": "What GPT is made of",
    "rules_activations": "Activations",
    "rules_arithmetic": "Arithmetic and functions of numbers",
    "rules_reductions": "Reductions, cumulative sums, norms, extremes",
    "rules_linear_algebra": "Linear algebra",
    "rules_indexing": "Picking, placing, rearranging",
    "rules_losses": "Losses",
    "rules_normalisation": "Normalisation",
    "rules_convolution": "Convolution, pooling, resizing",
    "rules_shape": "Views and copies (not counted)",
    "rules_flat": "No gradient passes (not counted)",
}
INTRODUCTION = """# The chain rule's table

Written from `src/lightwell/glass/rules*.py`; a test holds the two together. {count} operations have a derivative of
their own (overloads, in-place twins, other kernels of the same operation, views and operations without a gradient not
counted).

For an operation z = f(x, ...) a row gives dz/dx. Formulas are as `glass/formula.py` reads them: without indices they
hold element by element; [i=j] is 1 where the statement holds and 0 elsewhere; z0, z1, ... are an operation's outputs, z
is the first. Formulas with indices are for one row, one matrix or one batch element, as the number of their indices
says; options that a formula does not name have their usual values. At a kink, where no derivative exists, PyTorch's
choice is taken. Real numbers only.
"""


def rows() -> list[list[Rule]]:
    """The table's rows: rules that share a sentence, and so a meaning, together."""
    grouped: dict[str, list[Rule]] = {}
    for rule in RULES.values():
        grouped.setdefault(rule.sentence, []).append(rule)
    return list(grouped.values())


def counted() -> int:
    """How many operations have a derivative of their own."""
    return sum(row[0].kind == "derivative" for row in rows())


def page() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION.format(count=counted())]
    for family, title in FAMILIES.items():
        parts.append(f"## {title}\n")
        parts += [_entry(row) for row in rows() if row[0].family == family]
    return "\n".join(parts)


def write(path: str | Path) -> None:
    """Write the page to a file."""
    Path(path).write_text(page(), encoding="utf-8")


def _entry(row: list[Rule]) -> str:
    row = sorted(row, key=lambda rule: rule.name)
    lines = ["### " + ", ".join(f"`{rule.name}`" for rule in row), "", say(row[0].sentence), ""]
    for formula, latex in dict.fromkeys((rule.formula, rule.latex) for rule in row):
        lines += [f"$${latex}$$", "", *(f"    {equation.strip()}" for equation in formula.split(";")), ""]
    kinks = {rule.kink: None for rule in row if rule.kink}
    if kinks:
        lines += [f"Kink: {', '.join(kinks)}.", ""]
    return "\n".join(lines)
