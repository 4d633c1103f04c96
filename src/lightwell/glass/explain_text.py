"""An explanation as text for people, and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lightwell.glass.chain import Chain
from lightwell.glass.explain import Explanation, Reading, Term
from lightwell.glass.figures import figure, place_text, shape_text
from lightwell.glass.recording import Operation
from lightwell.glass.rules import find
from lightwell.glass.values import Value
from lightwell.glass.wording import say

ALL_ELEMENTS = 256  # a gradient of at most this many elements is written out in to_dict


def text(e: Explanation) -> str:
    """The whole explanation, one thought a line."""
    lines = list(_chains(e)) if e.chains else list(_sum(e)) if e.index is not None else list(_product(e))
    return "\n".join([*lines, *_ways(e), *_checks(e)])


def plain(e: Explanation) -> dict[str, Any]:
    """Numbers, strings, lists and dicts only."""
    return {
        "tensor": e.target.title,
        "value_id": e.target.id,
        "shape": list(e.target.shape),
        "index": None if e.index is None else list(e.index),
        "value": _plain_number(e.value),
        "autograd": _plain_number(e.autograd),
        "residual": e.residual,
        "bound": e.bound,
        "agree": e.agree,
        "differences": e.differences,
        "differences_of": e.differences_of,
        "before": _plain_number(e.before),
        "terms": [_plain_term(t) for t in e.terms],
        "rest": {"count": e.rest[0], "sum": e.rest[1]},
        "readings": [_plain_reading(r) for r in e.readings],
        "chains": [
            [
                {"name": link.text, "factor": link.factor, "operations": [o.id for o in link.operations]}
                for link in c.links
            ]
            for c in e.chains
        ],
        "ways": [{"labels": way.labels, "value": way.value} for way in e.ways],
        "text": text(e),
    }


def _chains(e: Explanation) -> Iterator[str]:
    """A single number: dL/dw = dL/da x da/dz x dz/dw = -1.0889 x 0.0750 x 1.1 = -0.0898."""
    yield say("explain.forward", e.language, values=", ".join(_forward(e)))
    derivative = e.chains[0].links
    name = f"dL/d{derivative[-1].lower}"
    for chain in e.chains:
        symbols = " x ".join(link.text for link in chain.links)
        numbers = " x ".join(figure(link.factor) for link in chain.links)
        whole = f"{symbols} = {numbers}" if len(chain.links) > 1 else numbers
        left = name if len(e.chains) == 1 else say("explain.along", e.language, path=_path_names(chain))
        yield f"{left} = {whole} = {figure(chain.value)}" if len(chain.links) > 1 else f"{left} = {whole}"
    if len(e.chains) > 1:
        yield f"{name} = {' + '.join(figure(c.value) for c in e.chains)} = {figure(e.value)}"
    for link in {(link.text, link.factor): link for chain in e.chains for link in chain.links}.values():
        yield say("explain.link", e.language, name=link.text, operations=", ".join(map(_operation, link.operations)))


def _forward(e: Explanation) -> Iterator[str]:
    """Every named number between the inputs and the loss, in the order in which it was made."""
    graph_values: dict[int, Value] = {}
    names: dict[int, str] = {}
    for chain in e.chains:
        for link in chain.links:
            for operation in link.operations:
                for v in operation.inputs.values():
                    if v.numel == 1 and v.name:
                        graph_values[v.id], names[v.id] = v, v.name
            top = link.operations[-1].outputs[0]
            graph_values[top.id], names[top.id] = top, link.upper
    for identity in sorted(graph_values):
        yield f"{names[identity]} = {figure(float(graph_values[identity].read().reshape(-1)[0]))}"


def _path_names(chain: Chain) -> str:
    return " <- ".join([chain.links[0].upper, *(link.lower for link in chain.links)])


def _sum(e: Explanation) -> Iterator[str]:
    """An element of a tensor: the largest terms, the others in one line."""
    count = sum(r.count for r in e.readings)
    key = "explain.sum" if count != 1 else "explain.sum_one"
    yield say(key, e.language, name=_name(e), value=figure(e.value), count=count)
    for term in e.terms:
        yield from _term(e, term, 1)
    if e.rest[0]:
        yield "  " + say(_many("explain.rest", e.rest[0]), e.language, count=e.rest[0], sum=figure(e.rest[1]))
    if e.before:
        yield "  " + say("explain.before", e.language, value=figure(e.before))
    if len(e.readings) > 1:
        for reading in e.readings:
            where = _operation(reading.operation)
            key = _many("explain.reading", reading.count)
            yield say(key, e.language, operation=where, value=figure(reading.value), count=reading.count)


def _many(key: str, count: int) -> str:
    """The key of the sentence for so many: one has a sentence of its own."""
    return key if count != 1 else f"{key}_one"


def _term(e: Explanation, term: Term, level: int) -> Iterator[str]:
    numbers = f"{figure(term.upstream)} x {figure(term.local)} = {figure(term.value)}"
    where = f"z{place_text(term.place)}, {_operation(term.operation)}"
    yield "  " * level + say("explain.term", e.language, numbers=numbers, where=where)
    for inner in term.inner:
        yield from _term(e, inner, level + 2)


def _product(e: Explanation) -> Iterator[str]:
    """A whole tensor: the product that its gradient is, with shapes."""
    shape = shape_text(e.target.shape)
    yield say("explain.tensor", e.language, name=_name(e), shape=shape, count=len(e.readings))
    for reading in e.readings:
        yield "  " + _product_line(e, reading)


def _product_line(e: Explanation, reading: Reading) -> str:
    operation = reading.operation
    transposed = sum(o.name in ("t", "transpose") for o in reading.views) % 2 == 1
    key = f"explain.product.{operation.name}_{'_'.join(map(str, reading.path))}{'_t' if transposed else ''}"
    shapes = {f"in{p[0]}": shape_text(v.shape) for p, v in operation.inputs.items() if len(p) == 1}
    swapped = {f"{k}_t": " x ".join(reversed(s.split(" x "))) for k, s in shapes.items()}
    out = shape_text(operation.outputs[0].shape)
    values = shapes | swapped | {"out": out, "out_t": " x ".join(reversed(out.split(" x ")))}
    plain = all(operation.attributes.get(name, 1) == 1 for name in ("alpha", "beta"))
    plain &= all(view.outputs[0].numel == e.target.numel for view in reading.views)  # all of it, not a part
    try:
        line = say(key if plain else "explain.product.other", e.language, formula=_formula(operation), **values)
    except KeyError:
        line = say("explain.product.other", e.language, formula=_formula(operation), **values)
    return f"{line}   ({_operation(operation)})"


def _formula(operation: Operation) -> str:
    rule = find(operation.op) if operation.op is not None else None
    return rule.formula if rule is not None else operation.name


def _ways(e: Explanation) -> Iterator[str]:
    if e.ways:
        yield say("explain.ways", e.language)
        for way in e.ways:
            yield f"  {figure(way.value):>12}  {' -> '.join(way.labels)}"
        yield f"  {figure(sum(w.value for w in e.ways)):>12}  {say('explain.ways_sum', e.language)}"


def _checks(e: Explanation) -> Iterator[str]:
    rule = _size(e.value)
    sources = sorted({say(f"explain.source.{r.source.replace(' ', '_')}", e.language) for r in e.readings})
    found = [say("explain.check.rule", e.language, value=rule, source=", ".join(sources))]
    if e.autograd is not None:
        found.append(say("explain.check.autograd", e.language, value=_size(e.autograd)))
    if e.differences is not None:
        of = say(f"explain.of.{e.differences_of}", e.language)
        found.append(say("explain.check.differences", e.language, value=figure(e.differences), of=of))
    yield "; ".join(found)
    if e.residual is None:
        yield say("explain.no_autograd", e.language)
    else:
        key = "explain.agree" if e.agree else "explain.disagree"
        yield say(key, e.language, residual=f"{e.residual:.1e}", bound=f"{e.bound:.1e}")


def _size(x: Any) -> str:
    """A number, or the root mean square of a tensor."""
    return f"rms {figure(float(x.double().square().mean().sqrt()))}" if isinstance(x, Tensor) else figure(x)


def _name(e: Explanation) -> str:
    return f"dL/d{e.target.name or 'x'}{place_text(e.index or ())}"


def _operation(operation: Operation) -> str:
    return f"{operation.name} {operation.place}".strip()


def _plain_number(x: Any) -> Any:
    if isinstance(x, Tensor):
        if x.numel() <= ALL_ELEMENTS:
            return x.double().tolist()
        flat = x.double().reshape(-1)
        return {"elements": flat.numel(), "rms": float(flat.square().mean().sqrt()), "largest": float(flat.abs().max())}
    return x


def _plain_term(t: Term) -> dict[str, Any]:
    return {
        "operation": t.operation.id,
        "name": t.operation.name,
        "module": t.operation.module.path if t.operation.module is not None else "",
        "file": t.operation.file,
        "line": t.operation.line,
        "input": list(t.path),
        "output": t.output,
        "index": list(t.place),
        "upstream": t.upstream,
        "local": t.local,
        "value": t.value,
        "terms": [_plain_term(inner) for inner in t.inner],
    }


def _plain_reading(r: Reading) -> dict[str, Any]:
    return {
        "operation": r.operation.id,
        "input": list(r.path),
        "backward_pass": r.backward_pass,
        "source": r.source,
        "value": _plain_number(r.value),
        "count": r.count,
        "magnitude": r.magnitude,
        "views": [o.id for o in r.views],
    }
