"""Self-contained HTML: one file or fragment with its own style, nothing fetched from anywhere.

Colours come from custom properties that follow the reader's light or dark setting. Text given to these functions is
escaped; the arguments named `body`, `css` and `script` are markup already.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lightwell.show.table import cell_text
from lightwell.show.terminal import plain

BASE_CSS = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1c2024; --soft: #5c6670; --line: #d5dae0; --panel: #f5f7f9;
  --forward: #0072b2; --backward: #c2500a; --good: #00785a; --bad: #b8302a; --unsure: #8a6500; --focus: #0066cc; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --fg: #e6e9ec; --soft: #9aa5b0; --line: #333a42;
  --panel: #1d2126; --forward: #4db8ec; --backward: #f08a4b; --good: #3ecfa3; --bad: #ff8078; --unsure: #e0b040;
  --focus: #7ab8ff; } }
.lw { font: 14px/1.5 system-ui, sans-serif; color: var(--fg); }
.lw table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.lw th, .lw td { padding: .15em .7em .15em 0; text-align: left; border-bottom: 1px solid var(--line); }
.lw th { font-weight: 600; } .lw .num { text-align: right; }
.lw pre, .lw code { font: 12.5px/1.45 ui-monospace, monospace; }
"""


def page(title: str, body: str, css: str = "", script: str = "", language: str = "en") -> str:
    """A whole document. A policy in its head forbids every request: it needs nothing but itself, today and later."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    scripted = f"<script>\n{script}\n</script>\n" if script else ""
    return (
        f'<!doctype html>\n<html lang="{escape(language)}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{BASE_CSS}body {{ margin: 0; background: var(--bg); }}\n{css}</style>\n"
        f'</head>\n<body class="lw">\n{body}\n{scripted}</body>\n</html>\n'
    )


def fragment(body: str, css: str = "") -> str:
    """Something to put in a notebook's cell."""
    return f'<div class="lw"><style>{BASE_CSS}{css}</style>\n{body}\n</div>'


def table(rows: Sequence[Sequence[object]], headers: Sequence[str] = (), caption: str = "") -> str:
    """A table; numbers go right, and cells are shown as the terminal's `draw_table` shows them."""
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{escape(caption)}</caption>")
    if headers:
        cells = "".join(f'<th scope="col">{escape(title)}</th>' for title in headers)
        parts.append(f"<thead><tr>{cells}</tr></thead>")
    parts.append("<tbody>")
    parts += ["<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows]
    return "".join([*parts, "</tbody></table>"])


def _cell(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (
        f'<td class="num">{escape(cell_text(value))}</td>'
        if is_number
        else f"<td>{escape(plain(cell_text(value)))}</td>"
    )
