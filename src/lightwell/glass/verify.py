"""Every gradient of a traced step, checked three ways, operation by operation.

For each operation there is the gradient that autograd gave, captured in the step, and two other ways to the same
number, both in float64 from the captured inputs: our rule, and finite differences of the operation run again. The
verdict is

    agree           each way that could be gone comes to autograd's number
    disagree        one of them does not, by more than rounding explains
    not checkable   there is no other way here, with the reason: a kink, discrete inputs, a function that does not
                    repeat itself, values that were not kept
    not run         the time that was given was over

What stands between operations is checked as well: that the gradient of a value read several times is the sum of what
came back, and that a gradient arrives as it was sent. And once for all together: the loss along a random direction of
all parameters at once, by running the whole forward pass again on both sides.

Errors are relative to the size of the gradient and stand beside their noise floor, which is measured (`noise`).
Finite differences are taken along one random direction for each input, which leans towards the gradient so that a wrong
factor shows. Source: the projection is that of torch.autograd.gradcheck's fast mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightwell.errors import TraceError
from lightwell.glass.call import Path
from lightwell.glass.differences import STEP, Slope, direction, slope_along
from lightwell.glass.graph import replay
from lightwell.glass.local import Local
from lightwell.glass.noise import SAFETY, all_finite, gives_what_it_gave, noise_floor, precision
from lightwell.glass.notebook import Shown
from lightwell.glass.recording import FanOut, Flow, Operation
from lightwell.glass.result import Trace
from lightwell.glass.rules import find
from lightwell.glass.values import Value
from lightwell.glass.wording import say
from lightwell.runtime.observer import Progress

Verdict = Literal["agree", "disagree", "not checkable", "not run"]
BY_CONVENTION = {  # gradients that on purpose are not the slopes of the operation by itself
    "_ctc_loss": "before_softmax",
    "_cudnn_ctc_loss": "before_softmax",
    "linalg_cholesky_ex": "symmetric",
    "_linalg_eigh": "symmetric",
}


@dataclass(frozen=True)
class Row:
    """One thing that was checked. `error` is the larger of the errors of the two ways, relative to the gradient's size;
    `rule` and `differences` are those errors by themselves, None where the way was not gone.
    """

    kind: Literal["operation", "sum", "hand-over", "whole function"]
    operation: str
    operation_id: int | None
    module: str
    file: str
    line: int
    backward_pass: int
    verdict: Verdict
    reason: str = ""
    error: float | None = None
    noise_floor: float | None = None
    rule: float | None = None
    differences: float | None = None

    @property
    def ratio(self) -> float:
        """The error in noise floors."""
        if self.error is None or self.noise_floor is None:
            return 0.0
        return self.error / self.noise_floor if self.noise_floor else math.inf * self.error if self.error else 0.0


@dataclass(frozen=True)
class Verification(Shown):
    """All rows, in the order of the forward pass."""

    rows: list[Row]
    language: str = "en"

    @property
    def agree(self) -> bool:
        """True if nothing disagrees."""
        return all(row.verdict != "disagree" for row in self.rows)

    @property
    def worst(self) -> Row | None:
        """A row that disagrees, the one with the largest error first; else the one nearest to it."""
        return max(self.rows, key=lambda row: (row.verdict == "disagree", row.ratio), default=None)

    def count(self, verdict: Verdict) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    def __str__(self) -> str:
        from lightwell.glass.verify_text import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        verdicts: tuple[Verdict, ...] = ("agree", "disagree", "not checkable", "not run")
        worst = self.worst
        return {
            "agree": self.agree,
            "counts": {verdict: self.count(verdict) for verdict in verdicts},
            "worst": None if worst is None else asdict(worst),
            "rows": [asdict(row) for row in self.rows],
        }


def verify(
    trace: Trace,
    *,
    seconds: float | None = None,
    differences: bool = True,
    whole: bool = True,
    language: str = "en",
    progress: Progress | None = None,
) -> Verification:
    """Check every gradient of the trace.

    seconds      stop after about this long; what is left is "not run"
    differences  whether to take finite differences of each operation (without them only the rules are compared)
    whole        whether to take those of the whole function
    Raises TraceError if the trace is open or holds no backward pass.
    """
    trace.require_closed()
    if not trace.passes:
        raise TraceError("expected a backward pass in the traced block, got none.", "Call loss.backward() inside it.")
    check = _Check(trace, differences, language)
    tasks = list(check.tasks(whole))
    ends = None if seconds is None else time.monotonic() + seconds
    rows: list[Row] = []
    for done, (blank, task) in enumerate(tasks):
        if progress is not None:
            progress(done, len(tasks), blank.operation)
        if ends is not None and time.monotonic() > ends:
            rows.append(blank)
        else:
            found = task()
            rows.extend(found if isinstance(found, list) else [found])
    return Verification(rows, language)


Task = tuple[Row, Callable[[], Row | list[Row]]]  # the row to show if there is no time for it; the check itself


class _Check:
    def __init__(self, trace: Trace, differences: bool, language: str) -> None:
        self.trace = trace
        self.take_differences = differences
        self.language = language

    def tasks(self, whole: bool) -> Iterator[Task]:
        for operation in self.trace.operations:
            for flow in operation.flows:
                blank = self._row(operation, flow.index, "not run", reason="time")
                yield blank, partial(self._operation, operation, flow)
        for fan_out in self.trace.fan_outs:
            blank = self._sum_row(fan_out, "not run", reason="time")
            yield blank, partial(self._fan_out, fan_out)
        for backward_pass in sorted({p.index for p in self.trace.passes}):
            blank = Row("hand-over", "hand-over", None, "", "", 0, backward_pass, "not run", self._say("time"))
            yield blank, partial(self._hand_overs, backward_pass)
            if whole:
                blank = self._whole_row(backward_pass, "not run", reason="time")
                yield blank, partial(self._whole, backward_pass)

    # --- one operation -----------------------------------------------------------------------------------------------

    def _operation(self, operation: Operation, flow: Flow) -> Row:
        try:
            return self._three_ways(operation, flow)
        except TraceError as refused:
            return self._row(operation, flow.index, "not checkable", text=refused.message)

    def _three_ways(self, operation: Operation, flow: Flow) -> Row:
        inputs = operation.inputs
        captured = {p: g.read() for p, g in flow.downstream.items() if g is not None}
        for p in self._left_out(operation, flow):  # None says that the gradient is 0
            captured[p] = torch.zeros(inputs[p].shape, dtype=inputs[p].dtype, device=inputs[p].device)
        if not any(inputs[p].is_float for p in captured if p in inputs):
            return self._row(operation, flow.index, "not checkable", reason="discrete")
        if operation.name in BY_CONVENTION:
            return self._row(operation, flow.index, "not checkable", reason=BY_CONVENTION[operation.name])
        if any(v.dtype.is_complex for v in (*inputs.values(), *operation.outputs)):
            return self._row(operation, flow.index, "not checkable", reason="complex")
        dtypes = [v.dtype for v in (*inputs.values(), *flow.upstream, *flow.downstream.values()) if v is not None]
        floats = list(dict.fromkeys(d for d in dtypes if d.is_floating_point))
        exactly = _moves_numbers(operation) and len(floats) == 1  # nothing is computed: no wider numbers needed
        local = Local.of(operation, floats[0] if exactly else torch.float64)
        if any(p not in local.inputs for p in captured):
            return self._row(operation, flow.index, "not checkable", reason="unknown_input")
        if not _repeats(operation, local):
            return self._row(operation, flow.index, "not checkable", reason="nondeterministic")
        captured = {p: g.to(local.dtype) for p, g in captured.items()}
        upstream = [None if u is None else u.read().to(local.dtype) for u in flow.upstream]
        exact = local.pull(upstream)
        eps = precision(dtypes)
        floors = {} if exactly else noise_floor(local, upstream, exact, eps, operation.id)  # a cast rounds
        by_rule = [_compare(captured[p], exact.get(p), floors.get(p)) for p in captured]
        slopes: list[Slope] = []
        if self.take_differences:
            generator = torch.Generator().manual_seed(operation.id)
            for p, gradient in captured.items():
                along = direction(local.inputs[p], gradient, generator)
                slopes.append(slope_along(local, p, along, gradient, upstream, floors.get(p), eps))
        return self._verdict(operation, flow.index, local, by_rule, slopes)

    def _left_out(self, operation: Operation, flow: Flow) -> list[Path]:
        """Inputs of which autograd wanted a gradient and got None. A pass that asked for some tensors only
        (torch.autograd.grad, backward(inputs=)) does not want the others'."""
        if any(p.restricted for p in self.trace.passes if p.index == flow.index) or not any(flow.upstream):
            return []
        inputs = operation.inputs
        got_none = [p for p, g in flow.downstream.items() if g is None and p in operation.differentiable]
        return [p for p in got_none if p in inputs and inputs[p].is_float]

    def _verdict(
        self, operation: Operation, index: int, local: Local, by_rule: list[tuple[float, float]], slopes: list[Slope]
    ) -> Row:
        rule = max(by_rule, key=lambda pair: _ratio(*pair))
        usable = [s for s in slopes if s.usable]
        differences = max(usable, key=lambda s: _ratio(s.error, s.noise), default=None)
        wrong = _ratio(*rule) > SAFETY or any(_ratio(s.error, s.noise) > SAFETY for s in usable)
        independent = local.source == "rule" or len(usable) == len(slopes) > 0
        kinks = sum(s.kinks for s in slopes)
        verdict: Verdict = "disagree" if wrong else "agree" if independent and _some_left(slopes) else "not checkable"
        reason = ""
        if kinks:
            reason = self._say("kink", count=kinks)
        elif verdict == "not checkable":
            reason = self._say("unsettled" if slopes else "no_rule")
        worst = rule
        if differences is not None and _ratio(differences.error, differences.noise) > _ratio(*rule):
            worst = (differences.error, differences.noise)
        return self._row(
            operation,
            index,
            verdict,
            text=reason,
            error=worst[0],
            noise_floor=worst[1],
            rule=rule[0],
            differences=None if differences is None else differences.error,
        )

    # --- between operations ------------------------------------------------------------------------------------------

    def _fan_out(self, fan_out: FanOut) -> Row:
        try:
            parts = [_wide(edge.gradients[fan_out.index].read()) for edge in fan_out.edges]
            parts += self._seeds(fan_out.value, fan_out.index)
            if fan_out.total is None:
                return self._sum_row(fan_out, "not checkable", reason="no_total")
            total = _wide(fan_out.total.read())
        except TraceError as refused:
            return self._sum_row(fan_out, "not checkable", text=refused.message)
        eps = torch.finfo(fan_out.value.dtype).eps
        floor = eps * torch.stack([p.abs() for p in parts]).sum(0)
        error, noise = _compare(total, torch.stack(parts).sum(0), floor)
        verdict: Verdict = "disagree" if _ratio(error, noise) > SAFETY else "agree"
        reason = "hook" if verdict == "disagree" else ""
        return self._sum_row(fan_out, verdict, reason=reason, error=error, noise_floor=noise)

    def _hand_overs(self, index: int) -> list[Row]:
        """Values read once: what the reader sent must be what the maker got. Only where it is not, there is a row."""
        found = []
        for edges in self.trace.readers.values():
            sent = [edge for edge in edges if index in edge.gradients]
            if len(sent) != 1 or self._seeds(sent[0].value, index):
                continue
            value = sent[0].value
            got, gave = self.trace.gradient_of(value, index), sent[0].gradients[index]
            if got is None or got is gave or not (got.readable and gave.readable):
                continue
            exact = _wide(gave.read())
            error, noise = _compare(_wide(got.read()), exact, torch.finfo(value.dtype).eps * exact.abs())
            if _ratio(error, noise) > SAFETY:
                maker = None if value.producer is None else self.trace.operations[value.producer]
                name = maker.name if maker is not None else value.title
                where = maker if maker is not None else self.trace.operations[sent[0].target]
                found.append(
                    Row(
                        "hand-over",
                        name,
                        None if maker is None else maker.id,
                        where.module.path if where.module is not None else "",
                        where.file,
                        where.line,
                        index,
                        "disagree",
                        self._say("hook"),
                        error,
                        noise,
                    )
                )
        return found

    def _seeds(self, value: Value, index: int) -> list[Tensor]:
        """What backward itself started with at this value."""
        found = []
        for p in self.trace.passes:
            for root, seed in zip(p.roots, p.seeds):
                if p.index == index and root is value:
                    found.append(torch.ones(value.shape).double() if seed is None else seed.read().double())
        return found

    # --- all together ------------------------------------------------------------------------------------------------

    def _whole(self, index: int) -> Row:
        """The loss along one direction of all parameters at once, against the sum of gradient times direction."""
        try:
            return self._along_all(index)
        except TraceError as refused:
            return self._whole_row(index, "not checkable", text=refused.message)

    def _along_all(self, index: int) -> Row:
        (root, seed), *others = [pair for p in self.trace.passes if p.index == index for pair in zip(p.roots, p.seeds)]
        if others or root.numel != 1:
            return self._whole_row(index, "not checkable", reason="root")
        pairs = [(v, self.trace.gradient_of(v, index)) for v in self._leaves(index)]
        leaves = [(v, gradient) for v, gradient in pairs if gradient is not None]
        if not leaves:
            return self._whole_row(index, "not checkable", reason="no_leaves")

        predicted, squares = 0.0, 0.0
        along: dict[int, Tensor] = {}
        for value, gradient in leaves:
            g = gradient.read().double()
            way = along[value.id] = direction(value.read().double(), g, torch.Generator().manual_seed(value.id)).float()
            products = g * way
            predicted += float(products.sum())
            squares += float(products.square_().sum())
        took_part = [o for o in self.trace.operations if any(f.index == index for f in o.flows)]
        eps = precision([v.dtype for o in took_part for v in (*o.inputs.values(), *o.outputs)])
        ends = {}
        for size in (-2.0, -1.0, 1.0, 2.0):
            changed = {i: partial(torch.add, other=way, alpha=size * STEP) for i, way in along.items()}
            ends[size] = float(replay(self.trace, index, changed, root).sum())
        scale = 1.0 if seed is None else float(seed.read().sum())
        near = scale * (ends[1.0] - ends[-1.0]) / (2 * STEP)
        far = scale * (ends[2.0] - ends[-2.0]) / (4 * STEP)
        size_of_it = max(abs(predicted), abs(near), 1e-300)
        depth = len(self.trace.operations)  # each operation on the way rounds once more
        rounding = 4 * torch.finfo(torch.float64).eps * max(map(abs, ends.values())) * abs(scale) / STEP
        noise = (
            eps * math.sqrt(depth) * (abs(predicted) + math.sqrt(squares)) + abs(near - far) + rounding
        ) / size_of_it
        error = abs(near - predicted) / size_of_it
        verdict: Verdict = "disagree" if error > SAFETY * noise else "agree"
        if not abs(near - far) <= 0.1 * size_of_it:  # a loss that is no number too
            verdict = "not checkable"
        reason = {"not checkable": "unsettled"}.get(verdict, "")
        return self._whole_row(index, verdict, reason=reason, error=error, noise_floor=noise, differences=error)

    def _leaves(self, index: int) -> list[Value]:
        edges = [edge for edge in self.trace.edges if index in edge.gradients]
        found = {e.value.id: e.value for e in edges if e.value.producer is None and e.value.is_float}
        return list(found.values())

    # --- rows --------------------------------------------------------------------------------------------------------

    def _say(self, key: str, **values: object) -> str:
        return say(f"verify.reason.{key}", self.language, **values)

    def _row(
        self, operation: Operation, index: int, verdict: Verdict, *, reason: str = "", text: str = "", **numbers: Any
    ) -> Row:
        module = operation.module.path if operation.module is not None else ""
        said = self._say(reason) if reason else text
        return Row(
            "operation",
            operation.name,
            operation.id,
            module,
            operation.file,
            operation.line,
            index,
            verdict,
            said,
            **numbers,
        )

    def _sum_row(self, fan_out: FanOut, verdict: Verdict, *, reason: str = "", text: str = "", **numbers: Any) -> Row:
        value = fan_out.value
        maker = None if value.producer is None else self.trace.operations[value.producer]
        where = maker if maker is not None else self.trace.operations[fan_out.edges[0].target]
        module = where.module.path if where.module is not None else ""
        name = say("verify.sum", self.language, count=len(fan_out.edges), what=maker.name if maker else value.title)
        said = self._say(reason) if reason else text
        return Row(
            "sum",
            name,
            maker.id if maker else None,
            module,
            where.file,
            where.line,
            fan_out.index,
            verdict,
            said,
            **numbers,
        )

    def _whole_row(self, index: int, verdict: Verdict, *, reason: str = "", text: str = "", **numbers: Any) -> Row:
        said = self._say(reason) if reason else text
        name = say("verify.whole", self.language)
        return Row("whole function", name, None, "", "", 0, index, verdict, said, **numbers)


def _compare(captured: Tensor, exact: Tensor | None, floor: Tensor | None) -> tuple[float, float]:
    """Error and noise floor, relative to the gradient's size: of the worse of the whole and its worst element."""
    if exact is None:
        return (0.0, 0.0) if not captured.any() else (math.inf, 1.0)
    if not captured.numel():
        return 0.0, 0.0
    if not all_finite(captured, exact):  # compare where both are numbers
        alike = (captured == exact) | (captured.isnan() & exact.isnan())
        both = captured.isfinite() & exact.isfinite()
        if not (alike | both).all():
            return math.inf, 1.0
        captured, exact = torch.where(both, captured, 0.0), torch.where(both, exact, 0.0)
        floor = None if floor is None else torch.where(both, floor, 0.0)
    gap, tiny = captured - exact, torch.finfo(torch.float64).tiny
    pairs = []
    for order in (2.0, math.inf):
        size = max(_norm(exact, order), tiny)
        pairs.append((_norm(gap, order) / size, 0.0 if floor is None else _norm(floor, order) / size))
    return max(pairs, key=lambda pair: _ratio(*pair))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _norm(x: Tensor, order: float) -> float:
    return float(torch.linalg.vector_norm(x, order))


def _ratio(error: float, noise: float) -> float:
    if noise > 0:
        return error / noise
    return math.inf if error > 0 else 0.0


def _moves_numbers(operation: Operation) -> bool:
    rule = find(operation.op) if operation.op is not None else None
    return rule is not None and rule.kind == "view"


def _some_left(slopes: list[Slope]) -> bool:
    return not slopes or any(s.usable for s in slopes)


def _repeats(operation: Operation, local: Local) -> bool:
    """Whether running it again gives what it gave: a custom function twice the same, and about the captured outputs."""
    if operation.kind == "function":
        for first, second in zip(local.outputs, local.replay({})):
            if not torch.equal(first.nan_to_num(), second.nan_to_num()):
                return False
    return gives_what_it_gave(operation, local)
