"""Numbers inside sentences: as short as they are true, four decimals where that is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def figure(x: float) -> str:
    """1.1 -> "1.1"; 0.07498... -> "0.0750"; 0.0014784 -> "0.001478"; 0.0000123 -> "1.230e-05"."""
    if not math.isfinite(x):
        return str(x)
    exact = _shortest(x)
    if len(exact.split(".")[-1]) <= 4 and "e" not in exact:
        return exact.removesuffix(".0")
    if 1e-2 <= abs(x) < 1e6:
        return f"{x:.4f}"
    if 1e-4 <= abs(x) < 1e-2:
        return f"{x:.6f}" if abs(x) >= 1e-3 else f"{x:.7f}"
    return f"{x:.3e}"


def place_text(place: Sequence[int]) -> str:
    """(3, 5) -> "[3, 5]"; () -> ""."""
    return f"[{', '.join(map(str, place))}]" if place else ""


def shape_text(shape: Sequence[int]) -> str:
    """(64, 192) -> "64 x 192"; () -> "1"."""
    return " x ".join(map(str, shape)) or "1"


def _shortest(x: float) -> str:
    """The shortest decimal that reads back as the same number: of float32, if it is one."""
    single = torch.tensor(x, dtype=torch.float32)
    if float(single) != x:
        return repr(x)
    for digits in range(1, 10):
        text = f"{x:.{digits}g}"
        if float(torch.tensor(float(text), dtype=torch.float32)) == x:
            return repr(float(text))
    return repr(x)
