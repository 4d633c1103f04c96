"""The dictionary of a trace with everything in it that the page reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightwell.glass.reads import all_reads
from lightwell.glass.result import Trace
from lightwell.glass.rules import find
from lightwell.glass.values import Value, sample_indices
from lightwell.glass.wording import say


def as_dict(trace: Trace, limit: int = 4096) -> dict[str, Any]:
    reads = all_reads(trace.operations)

    def number_of(value: Value | None) -> int | None:
        return None if value is None else value.id

    def value_of(value: Value) -> dict[str, Any]:
        statistics, elements, sample = value.statistics(), value.elements(limit), None
        if elements is None and value.readable:
            places, flat = sample_indices(value.numel).tolist(), value.read().reshape(-1)
            sample = {"indices": places, "elements": [float(flat[k]) for k in places]}
        return {
            "id": value.id,
            "name": value.name,
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "producer": value.producer,
            "statistics": asdict(statistics) if statistics else None,
            "elements": elements,
            "sample": sample,
        }

    def operation_of(o: Any) -> dict[str, Any]:
        rule = find(o.op) if o.op else None
        names = [a.name for a in o.op._schema.arguments] if o.op else []
        return {
            "id": o.id,
            "name": o.name,
            "kind": o.kind,
            "phase": o.phase,
            "call": o.call.name if o.call else "",
            "call_id": o.call.id if o.call else None,
            "module": o.module.path if o.module else "",
            "file": o.file,
            "line": o.line,
            "inputs": [
                {
                    "path": list(p),
                    "name": names[p[0]] if isinstance(p[0], int) and p[0] < len(names) else str(p[0]),
                    "value": v.id,
                }
                for p, v in o.inputs.items()
            ],
            "outputs": [v.id for v in o.outputs],
            "attributes": {name: str(value) for name, value in o.attributes.items()},
            "flows": [
                {
                    "index": f.index,
                    "upstream": [number_of(u) for u in f.upstream],
                    "downstream": [{"path": list(p), "value": number_of(g)} for p, g in f.downstream.items()],
                }
                for f in o.flows
            ],
            "rule": rule
            and {
                "formula": rule.formula,
                "sentence": say(rule.sentence),
                "reads": [
                    {"path": list(p), "letter": r.letter, "pattern": r.pattern} for p, r in reads.get(o.id, {}).items()
                ],
            },
        }

    edges = [
        {
            "id": e.id,
            "value": e.value.id,
            "source": e.source,
            "target": e.target,
            "path": list(e.path),
            "gradients": {str(k): g.id for k, g in e.gradients.items()},
        }
        for e in trace.edges
    ]
    fan_outs = [
        {"value": f.value.id, "index": f.index, "edges": [e.id for e in f.edges], "total": number_of(f.total)}
        for f in trace.fan_outs
    ]
    return {
        "modules": [{"path": m.path, "kind": m.kind} for m in trace.modules],
        "operations": [operation_of(o) for o in trace.operations],
        "values": [value_of(v) for v in trace.values],
        "edges": edges,
        "fan_outs": fan_outs,
        "accumulations": [
            {"index": a.index, "parameter": a.parameter.id, "increment": number_of(a.increment)}
            for a in trace.accumulations
        ],
        "notes": list(trace.notes),
    }
