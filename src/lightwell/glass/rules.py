"""The chain rule as a table."""

from __future__ import annotations

from lightwell.glass.rule import RULES, Rule, find, rule

__all__ = ["RULES", "Rule", "find", "rule"]


@rule("mul", formula="dz/dx = y; dz/dy = x")
def mul(dz, x, y):
    return dz * y, dz * x
