"""A trace as plain data, of the schema in docs/trace-format.md, and as a file: JSON, one HTML page, or Graphviz DOT."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightwell.errors import TraceError
from lightwell.files.atomic import write_file
from lightwell.glass.reads import Read, all_reads
from lightwell.glass.recording import Operation
from lightwell.glass.result import Trace
from lightwell.glass.rules import find
from lightwell.glass.values import Value, sample_indices
from lightwell.glass.wording import say

FORMAT, VERSION = "lightwell-trace", 1
WHOLE = 4096  # a tensor of at most this many elements is written out
BUDGET = 2_000_000  # elements of all tensors together; more tensors, smaller ones written out


def as_dict(trace: Trace, language: str = "en", verification: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Numbers, strings, lists and dicts only; numbers that are not finite are the strings "nan", "inf", "-inf".

    verification: what `Verification.to_dict` gives.
    """
    sums = trace.fan_outs  # first: a sum may be a value that nobody has asked for yet
    limit = max(64, min(WHOLE, BUDGET // max(1, len(trace.values))))
    reads = all_reads(trace.operations)
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_with": {"torch": torch.__version__, "python": platform.python_version()},
        "level": trace.level,
        "eager_instead_of_compiled": trace.eager_instead_of_compiled,
        "loss": _id(trace.loss),
        "modules": [
            {
                "path": m.path,
                "kind": m.kind,
                "parent": None if m.parent is None else m.parent.path,
                "calls": m.calls,
                "operations": m.operations,
            }
            for m in trace.modules
        ],
        "calls": [
            {
                "id": c.id,
                "name": c.name,
                "file": c.file,
                "line": c.line,
                "function": c.function,
                "module": "" if c.module is None else c.module.path,
                "operations": c.operations,
            }
            for c in trace.calls
        ],
        "operations": [_operation(o, reads.get(o.id, {}), language) for o in trace.operations],
        "values": [_value(v, limit) for v in trace.values],
        "edges": [
            {
                "id": e.id,
                "value": e.value.id,
                "source": e.source,
                "target": e.target,
                "path": list(e.path),
                "broadcast": trace.operations[e.target].broadcast(e.path),
                "gradients": {str(i): g.id for i, g in e.gradients.items()},
            }
            for e in trace.edges
        ],
        "fan_outs": [
            {"value": f.value.id, "index": f.index, "edges": [e.id for e in f.edges], "total": _id(f.total)}
            for f in sums
        ],
        "accumulations": [
            {
                "index": a.index,
                "parameter": a.parameter.id,
                "before": _id(a.before),
                "increment": _id(a.increment),
                "after": _id(a.after),
            }
            for a in trace.accumulations
        ],
        "passes": [
            {
                "index": p.index,
                "roots": [v.id for v in p.roots],
                "seeds": [_id(s) for s in p.seeds],
                "create_graph": p.create_graph,
                "failure": p.failure,
            }
            for p in trace.passes
        ],
        "verification": None if verification is None else _finite(verification),
        "disagreements": list(trace.disagreements),
        "notes": list(trace.notes),
    }


def save(
    trace: Trace,
    path: str | Path,
    *,
    verification: Mapping[str, Any] | None = None,
    title: str = "",
    language: str = "en",
) -> Path:
    """Write a trace to a file whose ending says how: .json, .html or .dot.

    verification: what `Verification.to_dict` gives; without it the page says that nothing was checked.
    Raises TraceError for another ending, SpaceError or UserError if the file cannot be written.
    """
    from lightwell.glass import page

    path = path_of(path)
    data = as_dict(trace, language, verification)
    if path.suffix == ".html":
        return page.write_page(data, path, verification=verification, title=title, language=language)
    text = page.to_dot(data) if path.suffix == ".dot" else json.dumps(data, allow_nan=False, ensure_ascii=False)
    write_file(path, text.encode("utf-8"))
    return path


def path_of(path: str | Path) -> Path:
    """Where a trace is to be saved. Raises TraceError for an ending that says no format."""
    path = Path(path)
    if path.suffix not in (".json", ".html", ".dot"):
        raise TraceError(f"expected a file that ends in .json, .html or .dot, got {path.name!r}.")
    return path


def _operation(o: Operation, reads: Mapping[Any, Read], language: str) -> dict[str, Any]:
    rule = find(o.op) if o.op is not None else None
    names = [a.name for a in o.op._schema.arguments] if o.op is not None else []
    return {
        "id": o.id,
        "kind": o.kind,
        "name": o.name,
        "kernel": "" if o.op is None else str(o.op),
        "phase": o.phase,
        "call": o.call.name if o.call is not None else "",
        "call_id": o.call.id if o.call is not None else None,
        "module": o.module.path if o.module is not None else "",
        "file": o.file,
        "line": o.line,
        "node": o.node,
        "sequence": o.sequence,
        "parent": o.parent,
        "again": o.again,
        "view": o.is_view,
        "inputs": [
            {"path": list(p), "name": _argument_name(names, p), "value": v.id, "written": p in o.writes}
            for p, v in o.inputs.items()
        ],
        "outputs": [v.id for v in o.outputs],
        "attributes": {name: _text(value) for name, value in o.attributes.items()},
        "flows": [
            {
                "index": f.index,
                "upstream": [_id(u) for u in f.upstream],
                "downstream": [{"path": list(p), "value": _id(g)} for p, g in f.downstream.items()],
            }
            for f in o.flows
        ],
        "backward": [{"kernel": name, "shapes": shapes} for name, shapes in o.backward],
        "rule": None
        if rule is None
        else {
            "formula": rule.formula,
            "latex": rule.latex,
            "sentence": say(rule.sentence, language),
            "kind": rule.kind,
            "kink": rule.kink,
            "reads": [{"path": list(p), "letter": r.letter, "pattern": r.pattern} for p, r in reads.items()],
        },
    }


def _value(v: Value, limit: int) -> dict[str, Any]:
    statistics = v.statistics() if v.readable or v.kept == "statistics" else None
    elements = v.elements(limit)
    return {
        "id": v.id,
        "name": v.name,
        "role": v.role,
        "shape": list(v.shape),
        "dtype": str(v.dtype).removeprefix("torch."),
        "device": str(v.device),
        "requires_grad": v.requires_grad,
        "producer": v.producer,
        "output": v.output,
        "kept": v.kept if v.readable or v.kept != "reference" else "nothing",
        "statistics": None if statistics is None else {k: _number(x) for k, x in asdict(statistics).items()},
        "elements": None if elements is None else _numbers(v, elements),
        "sample": None if elements is not None else _sample(v),
    }


def _sample(v: Value) -> dict[str, Any] | None:
    """The fixed sample: which elements, counted row by row, and what they are."""
    if not v.numel:
        return None
    if v.sample is not None:
        return {"indices": sample_indices(v.numel).tolist(), "elements": _numbers(v, v.sample)}
    if not v.readable or v.read().is_meta:
        return None
    indices = sample_indices(v.numel)
    return {"indices": indices.tolist(), "elements": _numbers(v, _picked(v.read(), indices).tolist())}


def _picked(tensor: Tensor, indices: Tensor) -> Tensor:
    """Elements by their number row by row, without laying out the whole tensor."""
    places = torch.unravel_index(indices.to(tensor.device), tensor.shape)
    picked = tensor[places] if tensor.dim() else tensor.reshape(1)
    return picked.abs() if picked.is_complex() else picked


def _argument_name(names: list[str], path: tuple[Any, ...]) -> str:
    first = path[0]
    return names[first] if isinstance(first, int) and first < len(names) else str(first)


def _id(value: Value | None) -> int | None:
    return None if value is None else value.id


def _finite(data: Any) -> Any:
    """Plain data with numbers that are not finite as strings."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(item) for item in data] if isinstance(data, list) else _number(data)


def _number(x: Any) -> Any:
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _numbers(v: Value, elements: Sequence[float]) -> list[Any]:
    """Elements as they are written: whole numbers as such, others with as many digits as tell them apart in their own
    precision.
    """
    if not v.dtype.is_floating_point and not v.dtype.is_complex:
        return [int(x) for x in elements]
    if v.dtype in (torch.float64, torch.complex128):
        return [_number(float(x)) for x in elements]
    return [_number(float(text)) for text in np.asarray(elements, dtype=np.float32).astype(str)]


def _text(value: Any) -> Any:
    """An attribute: numbers, strings and lists of them as they are, anything else as PyTorch prints it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return str(value)
