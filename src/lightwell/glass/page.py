"""A trace as one HTML file: the graph to fold and unfold, every number on a click, nothing fetched from anywhere.

    write_page(trace.to_dict(), "step.html")

The picture has forward and backward in one: values run down along solid lines, gradients up beside them along dashed
ones, the mirrored lane. Beside it stands the same program as a tree for keyboards and screen readers. Positions come
from layout.py and what is shown from page_data.py; `page_assets/page.js` draws and answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightwell.files.atomic import write_file
from lightwell.glass import layout
from lightwell.glass.page_data import PageData, Trace, arranged, drawn, inner_edges, shape_text
from lightwell.glass.wording import section
from lightwell.show import html


def write_page(
    trace: Trace,
    path: str | Path,
    *,
    verification: Mapping[str, Any] | None = None,
    title: str = "",
    language: str = "en",
) -> Path:
    """Writes the page of a trace and gives its path. verification: what `Verification.to_dict` gives; None: not run."""
    path = Path(path)
    text = page(trace, verification=verification, title=title or path.stem, language=language)
    write_file(path, text.encode("utf-8"))
    return path


def page(
    trace: Trace, *, verification: Mapping[str, Any] | None = None, title: str = "trace", language: str = "en"
) -> str:
    """The page as text."""
    data = PageData(drawn(trace), verification, language)
    body = _asset("page.html")
    # "<" is written in its escaped form, so that no name in a trace can end the element that holds the data
    written = json.dumps(data.made(), separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace(
        "<", "\\u003c"
    )
    words = {**section("page", language), "title": title, "filled_summary": data.summary()}
    filled = {name: escape(said) for name, said in words.items()} | {"data": written}
    body = re.sub(r"\{\{(\w+)\}\}", lambda hole: filled[hole[1]], body)  # once: what is put in has no holes
    return html.page(title, body, css=_asset("page.css"), script=_asset("page.js"), language=language)


def to_dot(trace: Trace) -> str:
    """The graph for Graphviz: modules as clusters, gradients as dashed edges that point back."""
    trace = drawn(trace)
    operations = {operation["id"]: operation for operation in trace["operations"]}
    shapes = {value["id"]: shape_text(value["shape"]) for value in trace["values"]}
    lines = ["digraph trace {", "  node [shape=box, fontname=sans];", '  edge [color="#0072b2"];']

    def write(box: layout.Box, depth: int) -> None:
        pad = "  " * depth
        for child in box.children:
            if isinstance(child, layout.Box):
                lines.append(f"{pad}subgraph {_quoted('cluster' + child.key)} {{ label={_quoted(child.name)};")
                write(child, depth + 1)
                lines.append(pad + "}")
            else:
                operation = operations[child.id]
                label = "\n".join([operation["name"], *(shapes[o] for o in operation["outputs"][:1])])
                lines.append(f"{pad}o{child.id} [label={_quoted(label)}];")

    write(arranged(trace), 1)
    for edge in inner_edges(trace):
        lines.append(f"  o{edge['source']} -> o{edge['target']};")
        if edge["gradients"]:
            lines.append(f'  o{edge["target"]} -> o{edge["source"]} [style=dashed, color="#c2500a", constraint=false];')
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _asset(name: str) -> str:
    return (files("lightwell.glass") / "page_assets" / name).read_text(encoding="utf-8")
