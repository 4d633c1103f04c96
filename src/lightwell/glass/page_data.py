"""What the page of a trace shows, made from the trace's dictionary: positions, sentences, and the numbers themselves.

The page computes nothing: what it says about an operation or a tensor is put together here. Of a large tensor a corner
of SIDE rows and columns goes into the page (or the evenly spaced sample, where the trace kept no more); its statistics
are of all its elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightwell.glass import layout
from lightwell.glass.noise import SAFETY
from lightwell.glass.wording import say, section
from lightwell.show.units import number, thousands

Trace = Mapping[str, Any]  # what Trace.to_dict gives; docs/trace-format.md

MOST_CELLS = 256  # numbers of one tensor in the page
BUDGET = 400_000  # numbers of all tensors together: about 3 MB
SIDE = 16  # rows and columns of the corner of a matrix
HALF = 9  # pixels from the middle of a node to its forward lane, and to its backward lane on the other side
MARKS = {"agree": "✓", "disagree": "✗", "not checkable": "?", "not run": "·"}


def drawn(trace: Trace) -> Trace:
    """The trace without the detaches by which autograd keeps results for itself: the program did not ask for them, and
    nobody reads what they give.
    """
    read = {edge["value"] for edge in trace["edges"]}
    hidden = {
        operation["id"]
        for operation in trace["operations"]
        if operation["name"] == "detach" != operation["call"] and read.isdisjoint(operation["outputs"])
    }
    operations = [operation for operation in trace["operations"] if operation["id"] not in hidden]
    edges = [edge for edge in trace["edges"] if edge["target"] not in hidden]
    return {**trace, "operations": operations, "edges": edges}


def arranged(trace: Trace) -> layout.Box:
    """Where everything goes: a box for each module, and for each call of the program that ran several kernels."""
    operations = trace["operations"]
    per_call: dict[Any, int] = {}
    for operation in operations:
        per_call[operation["call_id"]] = per_call.get(operation["call_id"], 0) + 1
    nodes = []
    for operation in operations:
        path = tuple(part for part in operation["module"].split(".") if part)
        if operation["phase"] != "forward":
            path = (operation["phase"], *path)
        if operation["call_id"] is not None and per_call[operation["call_id"]] > 1:
            path = (*path, f"{operation['call']}()")
        nodes.append(layout.Node(operation["id"], path))
    inner = list(inner_edges(trace))
    edges = [(edge["source"], edge["target"]) for edge in inner]
    marked = {(edge["source"], edge["target"]) for edge in inner if edge["gradients"]}
    return layout.arrange(nodes, edges, marked)


def inner_edges(trace: Trace) -> Iterable[Mapping[str, Any]]:
    """The edges between two operations (others bring in what came from outside)."""
    return (edge for edge in trace["edges"] if edge["source"] is not None and edge["source"] < edge["target"])


def shape_text(shape: Sequence[int], language: str = "en") -> str:
    return " x ".join(map(str, shape)) or say("page.number", language)


class PageData:
    """The page's data; `made()` is the whole of it."""

    def __init__(self, trace: Trace, verification: Mapping[str, Any] | None, language: str = "en") -> None:
        self.trace = trace
        self.language = language
        self.verification = verification
        self.boxes = layout.boxes(arranged(trace))
        self.box_index = {box.key: k for k, box in enumerate(self.boxes)}
        self.op_index = {operation["id"]: k for k, operation in enumerate(trace["operations"])}
        self.values = {value["id"]: value for value in trace["values"]}
        self.kinds = {module["path"]: module["kind"] for module in trace["modules"]}
        self.edges = {edge["id"]: edge for edge in trace["edges"]}
        self.totals = {a["parameter"]: a["increment"] for a in trace["accumulations"]}
        self.readers: dict[int, dict[int, None]] = {}
        for edge in trace["edges"]:
            self.readers.setdefault(edge["value"], {})[edge["target"]] = None
        self.home = {_key(child): k for k, box in enumerate(self.boxes) for child in box.children}
        self.verdicts = self._verdicts()

    def made(self) -> dict[str, Any]:
        operations = [self._operation(operation) for operation in self.trace["operations"]]
        sums = {str(s["value"]): self._sum(s) for s in self.trace["fan_outs"]}
        boxes = [self._box(box) for box in self.boxes]
        arrangements = {box.number: box.arrangement for box in self.boxes if box.arrangement is not None}
        shown = self._shown(operations, sums.values(), boxes)
        cells = max(SIDE, min(MOST_CELLS, BUDGET // max(1, len(shown))))
        return {
            "sizes": {
                "width": layout.NODE_WIDTH,
                "height": layout.NODE_HEIGHT,
                "rowGap": layout.ROW_GAP,
                "laneGap": layout.LANE_GAP,
                "padding": layout.PADDING,
                "header": layout.HEADER,
                "track": layout.TRACK,
                "half": HALF,
            },
            "texts": section("page", self.language),
            "notes": list(self.trace["notes"]),
            "ops": operations,
            "boxes": boxes,
            "arrangements": [
                {"cells": a.cells, "edges": a.edges, "tracks": a.tracks, "lanes": a.lanes, "layers": a.layers}
                for _, a in sorted(arrangements.items())
            ],
            "sums": sums,
            "values": {str(k): self._value(self.values[k], cells) for k in shown},
        }

    def summary(self) -> str:
        """The line at the top: how much there is, and whether it was checked."""
        gradients = sum(bool(edge["gradients"]) for edge in self.trace["edges"])
        if self.verification is None:
            checked = self._say("unchecked")
        else:
            counts = self.verification["counts"].items()
            checked = ", ".join(
                f"{thousands(n)} {self._say(f'verdict_{_word(verdict)}')}" for verdict, n in counts if n
            )
        counted = thousands(len(self.trace["operations"]))
        return self._say("summary", operations=counted, gradients=thousands(gradients), checked=checked)

    def _say(self, key: str, **values: object) -> str:
        return say(f"page.{key}", self.language, **values)

    def _verdicts(self) -> dict[int, tuple[str, str]]:
        """Operation id -> verdict, and what there is to say about it. Of several passes the worst one counts."""
        found: dict[int, tuple[str, str]] = {}
        order = ["not run", "agree", "not checkable", "disagree"]
        for row in self.verification["rows"] if self.verification is not None else ():
            known = found.get(row["operation_id"])
            if row["operation_id"] is None or (known and order.index(known[0]) >= order.index(row["verdict"])):
                continue
            errors = [
                self._say(f"error_{way}", error=f"{row[way]:.1e}")
                for way in ("rule", "differences")
                if row[way] is not None
            ]
            if row["noise_floor"] is not None and errors:
                errors.append(self._say("error_floor", floor=f"{row['noise_floor']:.1e}", safety=SAFETY))
            found[row["operation_id"]] = (
                row["verdict"],
                "; ".join([*errors, *([row["reason"]] if row["reason"] else [])]),
            )
        return found

    def _box(self, box: layout.Box) -> dict[str, Any]:
        assert box.arrangement is not None
        path = box.key.strip("/").split("#")[0].replace("/", ".")
        kind = self.kinds.get(path, "")
        held = [v["id"] for v in self.trace["values"] if kind and v["name"].rpartition(".")[0] == path]
        return {
            "title": box.name or self._say("program"),
            "kind": kind,
            "key": box.key,
            "words": self._say("module" if kind else "group", name=path or self._say("program"), kind=kind),
            "parent": self.home.get(box.key),
            "children": [[int(isinstance(c, layout.Box)), self._index(c)] for c in box.children],
            "arrangement": box.number,
            "gradients": [int(box.links[a, b]) for a, b, _ in box.arrangement.edges],
            "back": int(any(box.links.values())),
            "parameters": [[v, self.totals.get(v)] for v in held],
        }

    def _index(self, child: layout.Box | layout.Node) -> int:
        return self.box_index[child.key] if isinstance(child, layout.Box) else self.op_index[child.id]

    def _operation(self, operation: Mapping[str, Any]) -> dict[str, Any]:
        flow = operation["flows"][-1] if operation["flows"] else {"upstream": [], "downstream": []}
        back = {_path(d["path"]): d["value"] for d in flow["downstream"]}
        rule = operation["rule"] or {"formula": "", "sentence": "", "reads": []}
        reads = {_path(read["path"]): read for read in rule["reads"]}
        inputs = []
        for entry in operation["inputs"]:
            path = _path(entry["path"])
            name = reads[path]["letter"] if path in reads and reads[path]["letter"] else entry["name"]
            inputs.append({"name": name, "value": entry["value"], "gradient": back.get(path)})
        makers = (self.values[i["value"]]["producer"] for i in inputs)
        readers = (target for value in operation["outputs"] for target in self.readers.get(value, ()))
        verdict, remark = self.verdicts.get(operation["id"], ("", ""))
        attributes = {name: value for name, value in operation["attributes"].items() if value is not None}
        return {
            "title": operation["name"].lstrip("_"),
            "subtitle": self._subtitle(operation),
            "slope": self._slope(operation, flow["upstream"]),
            "words": self._words(operation, inputs, verdict),
            "sentence": rule["sentence"],
            "formula": rule["formula"],
            "verdict": _word(verdict) or "none",
            "remark": remark,
            "mark": MARKS.get(verdict, ""),
            "box": self.home[operation["id"]],
            "height": layout.NODE_HEIGHT,
            "inputs": inputs,
            "outputs": operation["outputs"],
            "upstream": flow["upstream"],
            "back": int(any(u is not None for u in flow["upstream"])),
            "makers": _once(self.op_index[m] for m in makers if m is not None),
            "readers": _once(self.op_index[r] for r in readers),
            "attributes": ", ".join(f"{name} = {value}" for name, value in attributes.items()),
            "reads": [
                reads[_path(e["path"])]["pattern"] if _path(e["path"]) in reads else None for e in operation["inputs"]
            ],
        }

    def _subtitle(self, operation: Mapping[str, Any]) -> str:
        """What comes out: the shape of the first output, or the number if it is one; by its name if it has one."""
        outputs = [self.values[o] for o in operation["outputs"]]
        if not outputs:
            return ""
        first, more = outputs[0], f" (+{len(outputs) - 1})" if len(outputs) > 1 else ""
        if _is_number(first):
            said = _said(first)
            return (f"{first['name']} = {said}" if first["name"] else said) + more
        said = shape_text(first["shape"], self.language)
        return (f"{first['name']}: {said}" if first["name"] else said) + more

    def _slope(self, operation: Mapping[str, Any], upstream: Sequence[int | None]) -> str:
        """The gradient of a single number, to stand beside it."""
        first = self.values[upstream[0]] if upstream and upstream[0] is not None else None
        if first is None or not _is_number(first):
            return ""
        return f"dL/d{self.values[operation['outputs'][0]]['name'] or 'out'} {_said(first)}"

    def _words(self, operation: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], verdict: str) -> str:
        """The operation in one or two sentences, for those who hear the page and for those who point at a node."""
        place = operation["module"] or self._say("program")
        line = f"{operation['file'].rsplit('/', 1)[-1]}:{operation['line']}" if operation["file"] else ""
        taken = ", ".join(f"{i['name']} {self._tensor(i['value'])}" for i in inputs) or self._say("nothing")
        given = ", ".join(self._tensor(o) for o in operation["outputs"]) or self._say("nothing")
        said = self._say(
            "operation", name=operation["name"].lstrip("_"), place=place, line=line, taken=taken, given=given
        )
        return f"{said} {self._say(f'says_{_word(verdict)}')}" if verdict else said

    def _tensor(self, value: int) -> str:
        named = self.values[value]["name"]
        shape = shape_text(self.values[value]["shape"], self.language)
        return f"{named} ({shape})" if named else shape

    def _sum(self, fan_out: Mapping[str, Any]) -> dict[str, Any]:
        """A value read several times: the gradients that come back, and their sum."""
        edges = [self.edges[e] for e in fan_out["edges"]]
        parts = [[self.op_index[e["target"]], _last(e["gradients"])] for e in edges]
        return {"parts": parts, "total": fan_out["total"]}

    def _shown(self, operations: Any, sums: Any, boxes: Any) -> list[int]:
        """Ids of the values that anything on the page shows."""
        found: dict[int | None, None] = {}
        for operation in operations:
            entries = operation["inputs"]
            found |= dict.fromkeys([*(i["value"] for i in entries), *(i["gradient"] for i in entries)])
            found |= dict.fromkeys([*operation["outputs"], *operation["upstream"]])
        for sum_ in sums:
            found |= dict.fromkeys([*(gradient for _, gradient in sum_["parts"]), sum_["total"]])
        for box in boxes:
            found |= dict.fromkeys(value for pair in box["parameters"] for value in pair)
        return [value for value in found if value is not None]

    def _value(self, value: Mapping[str, Any], cells: int) -> dict[str, Any]:
        shape = value["shape"]
        made: dict[str, Any] = {
            "name": value["name"],
            "dtype": value["dtype"],
            "shape": shape,
            "text": shape_text(shape, self.language),
            "stats": _said(value, 7) if _is_number(value) else self._statistics(value["statistics"]),
            "outside": int(value["producer"] is None),
            "columns": 1,
            "data": None,
        }
        if value["elements"] is not None:
            places = corner(shape, cells)
            made["data"] = [_short(value["elements"][k]) for k in places]
            made["columns"] = min(shape[-1], SIDE * 2 if len(shape) == 1 else cells) if shape else 1
            if len(places) < len(value["elements"]):
                made["flat"] = places
                made["columns"] = min(shape[-1], SIDE)
        elif value["sample"] is not None:
            made["data"] = [_short(x) for x in value["sample"]["elements"]]
            made["flat"] = value["sample"]["indices"]
            made["columns"] = SIDE
        return made

    def _statistics(self, s: Mapping[str, Any] | None) -> str:
        if s is None:
            return ""
        parts = []
        if s["minimum"] is not None:
            said = {key: number(s[key]) for key in ("minimum", "maximum", "mean", "rms")}
            parts.append(self._say("statistics", **said))
        for key in ("zeros", "nan", "inf", "minus_inf"):
            if s[key]:
                parts.append(self._say(f"count_{key}", n=thousands(s[key])))
        return "; ".join(parts)


def corner(shape: Sequence[int], most: int) -> list[int]:
    """Places, counted row by row, of the elements shown: all if they are at most `most`, else a corner of the first
    matrix.
    """
    count = math.prod(shape)
    if count <= most:
        return list(range(count))
    if len(shape) == 1:
        return list(range(most))
    side = min(SIDE, math.isqrt(most))
    columns = min(shape[-1], side)
    rows = min(shape[-2], most // columns if columns < side else side)
    return [row * shape[-1] + column for row in range(rows) for column in range(columns)]


def _is_number(value: Mapping[str, Any]) -> bool:
    """Whether it is a single number, and known."""
    return math.prod(value["shape"]) == 1 and bool(value["elements"])


def _said(value: Mapping[str, Any], digits: int = 4) -> str:
    """The single number of a value."""
    (x,) = value["elements"]
    return number(x if isinstance(x, int) else float(x), digits)


def _key(child: layout.Box | layout.Node) -> str | int:
    return child.key if isinstance(child, layout.Box) else child.id


def _path(path: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(path)


def _word(verdict: str) -> str:
    return verdict.replace(" ", "_")


def _last(gradients: Mapping[Any, int]) -> int | None:
    """The gradient of the last backward pass."""
    return gradients[max(gradients, key=int)] if gradients else None


def _once(items: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(items))


def _short(x: float | str | None) -> float | str | None:
    """Five digits, whole numbers all of theirs; what is not finite as a word, since JSON has no such numbers."""
    if x is None or isinstance(x, str | int):
        return x
    return float(f"{x:.5g}") if math.isfinite(x) else str(x)
