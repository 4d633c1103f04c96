"""Where a NaN or an infinity was born, in forward, backward or optimizer, and who only passed it on.

A *producer* gives a number that is not finite though everything it read was finite, or of a kind that none of its
inputs had (NaN out of two infinities). All later ones are *carriers*. Infinities that the program wrote down as such,
the -inf of an attention mask, are meant: whoever passes them on is not accused, but the softmax of a row that is masked
everywhere is, since it makes NaN of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from lightwell.errors import TraceError
from lightwell.glass.call import is_random
from lightwell.glass.figures import figure, place_text
from lightwell.glass.notebook import Shown
from lightwell.glass.recording import Operation
from lightwell.glass.result import Trace
from lightwell.glass.rules import find
from lightwell.glass.values import Value
from lightwell.glass.wording import say

Kind = Literal["nan", "inf", "-inf"]
Stage = Literal["outside", "forward", "backward", "optimizer"]
READ = 8  # numbers listed that an element was made of


@dataclass(frozen=True)
class Birth:
    """The first bad number of one stage. `place` is where it stands in the tensor, `made_of` the numbers it was made of
    (as text, by input), `carriers` how many later operations of the stage passed bad numbers on.
    """

    stage: Stage
    kinds: list[Kind]
    count: int
    of: int
    operation: str
    operation_id: int | None
    module: str
    file: str
    line: int
    place: list[int]
    made_of: dict[str, list[float]] = field(default_factory=dict)
    carriers: int = 0


@dataclass(frozen=True)
class Origins(Shown):
    """The births that were found, the first of each stage, in the order of the stages. None: all is finite."""

    births: list[Birth]
    unknown: int  # values that could not be read
    language: str = "en"

    @property
    def first(self) -> Birth | None:
        return self.births[0] if self.births else None

    def __str__(self) -> str:
        if not self.births:
            lines = [say("origin.none", self.language)]
        else:
            lines = [line for birth in self.births for line in self._lines(birth)]
        if self.unknown:
            lines.append(say("origin.unknown", self.language, count=self.unknown))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {"births": [asdict(birth) for birth in self.births], "unknown": self.unknown, "text": str(self)}

    def _lines(self, b: Birth) -> Iterator[str]:
        kinds = " and ".join({"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[k] for k in b.kinds)
        place = " ".join(part for part in (b.module, f"{b.file.rsplit('/', 1)[-1]}:{b.line}" if b.file else "") if part)
        values: dict[str, Any] = {
            "kinds": kinds,
            "count": b.count,
            "of": b.of,
            "operation": b.operation,
            "place": place,
        }
        yield say(f"origin.{b.stage}", self.language, **values)
        if b.made_of:
            numbers = "; ".join(f"{name} = {', '.join(map(figure, x))}" for name, x in b.made_of.items())
            yield "  " + say("origin.made_of", self.language, where=place_text(b.place), numbers=numbers)
        if b.carriers:
            yield "  " + say("origin.carriers", self.language, count=b.carriers)


def origins(trace: Trace, language: str = "en") -> Origins:
    """The first birth of a NaN or infinity in each stage of the traced step. Raises TraceError if the trace is open."""
    trace.require_closed()
    search = _Search(trace)
    found = [search.outside(), search.through("forward"), search.backward(), search.through("optimizer")]
    return Origins([birth for birth in found if birth is not None], search.unknown, language)


class _Search:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.unknown = 0
        self._kinds: dict[int, frozenset[Kind]] = {}
        self._meant: dict[int, frozenset[Kind]] = {}  # value id -> infinities that the program wrote down
        self._made: dict[int, list[Value]] = {}
        for value in trace.values:
            if value.producer is not None and value.role != "gradient":
                self._made.setdefault(value.producer, []).append(value)

    def outside(self) -> Birth | None:
        """Data or parameters that came with NaN. A buffer of infinities is taken for a mask."""
        bad = [v for v in self.trace.values if v.role == "outside" and v.id in self.trace.readers and self.kinds(v)]
        for value in bad:
            self._meant[value.id] = self.kinds(value) - {"nan"}
        strange = [v for v in bad if "nan" in self.kinds(v)]
        return self._birth("outside", strange[0], None, 0) if strange else None

    def through(self, stage: Literal["forward", "optimizer"]) -> Birth | None:
        phases = ("forward", "recompute") if stage == "forward" else ("optimizer",)
        birth: tuple[Operation, Value] | None = None
        carriers = 0
        for operation in self.trace.operations:
            if operation.phase not in phases or operation.kind == "autograd":
                continue
            inputs = list(operation.inputs.values())
            came = self._all(self.kinds(v) for v in inputs)
            meant = self._all(self._meant.get(v.id, frozenset()) for v in inputs) | _written_down(operation)
            for value in self._made.get(operation.id, []):
                new = self.kinds(value) - meant
                self._meant[value.id] = self.kinds(value) & meant
                if not new or (operation.op is not None and is_random(operation.op)):
                    continue
                if birth is None and (not new <= came or not came):
                    birth = operation, value
                else:
                    carriers += 1
                break
        return None if birth is None else self._birth(stage, birth[1], birth[0], carriers)

    def backward(self) -> Birth | None:
        """Gradients: the first node, in the order in which backward runs, that got finite ones and gave others, though
        the numbers of the forward pass were as they should be.
        """
        birth: tuple[Operation, Value] | None = None
        carriers = 0
        flows = [(flow, o) for o in self.trace.operations for flow in o.flows]
        flows.sort(key=lambda pair: (pair[0].index, -(pair[1].sequence or 0)))
        for flow, operation in flows:
            sent = [g for g in flow.downstream.values() if g is not None and self.kinds(g)]
            if not sent:
                continue
            got = self._all(self.kinds(u) for u in flow.upstream if u is not None)
            forward = (*operation.inputs.values(), *operation.outputs)
            got |= self._all(self.kinds(v) - self._meant.get(v.id, frozenset()) for v in forward)
            if birth is None and not got:
                birth = operation, sent[0]
            else:
                carriers += 1
        return None if birth is None else self._birth("backward", birth[1], birth[0], carriers)

    def kinds(self, value: Value) -> frozenset[Kind]:
        """What is not finite in a value."""
        if value.id not in self._kinds:
            self._kinds[value.id] = self._look(value)
        return self._kinds[value.id]

    def _look(self, value: Value) -> frozenset[Kind]:
        if not value.is_float:
            return frozenset()
        if not value.readable:
            known = value.statistics() if value.kept == "statistics" else None
            self.unknown += known is None
            counts = (known.nan, known.inf, known.minus_inf) if known is not None else (0, 0, 0)
        else:
            x = value.read()
            if x.is_meta or math.isfinite(abs(x.sum().item())):
                return frozenset()
            counts = (int(x.isnan().sum()), int((x == math.inf).sum()), int((x == -math.inf).sum()))
        names: tuple[Kind, Kind, Kind] = ("nan", "inf", "-inf")
        return frozenset(name for name, n in zip(names, counts) if n)

    @staticmethod
    def _all(sets: Iterable[frozenset[Kind]]) -> frozenset[Kind]:
        return frozenset(kind for found in sets for kind in found)

    def _birth(self, stage: Stage, value: Value, operation: Operation | None, carriers: int) -> Birth:
        kinds = sorted(self.kinds(value) - self._meant.get(value.id, frozenset()), reverse=True)
        place, count = self._where(value, kinds)
        return Birth(
            stage=stage,
            kinds=kinds,
            count=count,
            of=value.numel,
            operation=operation.name if operation is not None else value.title,
            operation_id=operation.id if operation is not None else None,
            module=operation.module.path if operation is not None and operation.module is not None else "",
            file=operation.file if operation is not None else "",
            line=operation.line if operation is not None else 0,
            place=place,
            made_of=self._made_of(operation, value, tuple(place)) if operation is not None else {},
            carriers=carriers,
        )

    def _where(self, value: Value, kinds: list[Kind]) -> tuple[list[int], int]:
        if not value.readable:
            known = value.statistics()
            counts = {} if known is None else {"nan": known.nan, "inf": known.inf, "-inf": known.minus_inf}
            return [], sum(counts.get(kind, 0) for kind in kinds)
        x = value.read()
        bad = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for kind in kinds:
            bad |= x.isnan() if kind == "nan" else x == float(kind)
        places = bad.nonzero()
        return places[0].tolist(), len(places)

    def _made_of(self, operation: Operation, value: Value, place: tuple[int, ...]) -> dict[str, list[float]]:
        """The input numbers that the bad element was computed from, as far as the rule's index map tells."""
        rule = find(operation.op) if operation.op is not None else None
        if rule is None or not value.readable or value.role == "gradient" or operation.writes:
            return self._elementwise(operation, place)
        try:
            read = rule.index_map(operation.kernel(), place)
        except TraceError:
            return {}
        found = {}
        for path, places in read.items():
            source = operation.inputs[path]
            numbers = source.read()[tuple(places.T)] if places.shape[1] else source.read().reshape(-1)
            worst = (
                numbers.reshape(-1).abs().nan_to_num(math.inf, math.inf).argsort(descending=True, stable=True)[:READ]
            )
            found[source.name or f"input {path[0]}"] = numbers.reshape(-1)[worst].double().tolist()
        return found

    @staticmethod
    def _elementwise(operation: Operation, place: tuple[int, ...]) -> dict[str, list[float]]:
        """In backward and for writes in place: the elements of the inputs that stand at the same place."""
        return {
            v.name or f"input {path[0]}": [float(v.read()[place])]
            for path, v in operation.inputs.items()
            if v.is_float and v.readable and len(v.shape) == len(place) and all(i < n for i, n in zip(place, v.shape))
        }


def _written_down(operation: Operation) -> frozenset[Kind]:
    """Infinities among an operation's constants: the program asked for them."""
    constants = [a for a in operation.attributes.values() if isinstance(a, float) and math.isinf(a)]
    return frozenset("inf" if c > 0 else "-inf" for c in constants)
