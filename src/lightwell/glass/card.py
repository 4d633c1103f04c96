"""A tensor's card: what it is, and what the usual operations do to it, seen and not told.

    print(lightwell.card(x))

The facts are read from the tensor. What `.to`, `reshape`, `.T`, `@`, indexing and NumPy do is tried out, on a stand-in
of the same shape, strides and dtype, so that nothing can happen to the tensor itself: a copy with its own memory if the
tensor is small, else one without numbers (device "meta"), which takes no memory however large the shape is. Whether a
result shares memory is read from its storage and, on a stand-in with numbers, also by writing into it and looking.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.errors import TraceError
from lightwell.glass.values import Statistics
from lightwell.glass.wording import say
from lightwell.show import html
from lightwell.show.table import draw_table
from lightwell.show.terminal import paint, shorten
from lightwell.show.units import number, size, thousands

STAND_IN = 1 << 18  # elements of storage up to which a stand-in holds numbers
MEASURED = 1 << 24  # elements up to which statistics are over all of them, else over SAMPLED evenly spaced ones
SAMPLED = 1 << 20
EDGE = 3  # values shown at each end of a dimension that is too long

Memory = Literal["same_object", "same_memory", "own_memory", "no_memory", "written", "refused"]


@dataclass(frozen=True)
class Seen:
    """What one expression did: `memory` compares its result with the tensor; refusals carry PyTorch's own words.

    writes_through: whether writing into the result was seen in the tensor; None where that was not tried.
    """

    group: str
    expression: str
    memory: Memory
    dtype: str = ""
    device: str = ""
    shape: list[int] | None = None
    strides: list[int] | None = None
    writes_through: bool | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Card:
    """See `card`. `facts`, `statistics`, `values` and `seen` are what the drawings show; `to_dict` is all of it."""

    facts: dict[str, Any]
    statistics: dict[str, Any] | None
    values: Any
    seen: list[Seen]
    stand_in: Literal["copy", "meta", "none"]
    language: str = "en"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return self.draw()

    def draw(self, color: bool = False, width: int | None = None) -> str:
        """For the terminal; `width` columns, or as wide as the sentences are."""
        parts = [paint(self.title, "bold", color), draw_table(self._fact_rows(), color=color, width=width)]
        if self.values is not None:
            parts.append(_shown(self.values))
        if self.seen:
            rows: list[list[object]] = []
            for group, seen in self._groups().items():
                rows += [[""], [paint(self._say(f"group.{group}"), "bold", color)], *seen]
            parts.append(draw_table(rows, self._headers(), "llll", color, width))
            parts.append(paint(self._say(f"stand_in.{self.stand_in}"), "dim", color))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [f"<h3>{escape(self.title)}</h3>", html.table(self._fact_rows())]
        if self.values is not None:
            parts.append(f"<pre>{escape(_shown(self.values))}</pre>")
        for group, rows in self._groups().items():
            table = html.table(rows, self._headers())
            parts.append(f"<details><summary>{escape(self._say(f'group.{group}'))}</summary>{table}</details>")
        if self.seen:
            parts.append(f"<p>{escape(self._say(f'stand_in.{self.stand_in}'))}</p>")
        return html.fragment("\n".join(parts))

    @property
    def title(self) -> str:
        f = self.facts
        return self._say("title", rank=f["rank"], dtype=f["dtype"], shape=_tuple(f["shape"]), device=f["device"])

    def _say(self, key: str, **values: object) -> str:
        return say(f"card.{key}", self.language, **values)

    def _fact_rows(self) -> list[list[object]]:
        f = self.facts
        rows: list[list[object]] = [
            [self._say("fact.elements"), thousands(f["elements"])],
            [self._say("fact.strides"), self._strides()],
            [self._say("fact.memory"), self._memory()],
            [self._say("fact.view"), self._view()],
            [self._say("fact.gradient"), self._gradient()],
        ]
        if f["kinds"]:
            rows.append([self._say("fact.kinds"), ", ".join(f["kinds"])])
        s = self.statistics
        if s is not None:
            of = "all" if s["measured"] == f["elements"] else "sample"
            rows.append(
                [
                    self._say("fact.statistics"),
                    self._say(f"statistics.{of}", **_rounded(s), count=thousands(f["elements"])),
                ]
            )
            bad = {k: s[k] for k in ("nan", "inf", "minus_inf") if s[k]}
            key = "statistics.not_finite" if bad else "statistics.finite"
            counts = ", ".join(f"{thousands(n)} {self._say(f'statistics.{k}')}" for k, n in bad.items())
            rows.append([self._say("fact.finite"), self._say(key, counts=counts)])
        return rows

    def _strides(self) -> str:
        f = self.facts
        if f["strides"] is None:
            return self._say("strides.none", layout=f["layout"])
        key = "contiguous" if f["contiguous"] else "overlapping" if f["overlapping"] else "scattered"
        return self._say(f"strides.{key}", strides=_tuple(f["strides"]), offset=f["offset"])

    def _memory(self) -> str:
        f = self.facts
        key = "part" if f["storage_bytes"] not in (None, f["bytes"]) else "whole"
        return self._say(
            f"memory.{key}", size=size(f["bytes"]), item=f["item_bytes"], storage=size(f["storage_bytes"] or 0)
        )

    def _view(self) -> str:
        base = self.facts["view_of"]
        if base is None:
            return self._say("view.yes_unknown" if self.facts["shares_storage"] else "view.no")
        return self._say("view.yes", shape=_tuple(base["shape"]), strides=_tuple(base["strides"]))

    def _gradient(self) -> str:
        f = self.facts
        if not f["requires_grad"]:
            return self._say("gradient.no")
        if f["grad_fn"]:
            return self._say("gradient.computed", grad_fn=f["grad_fn"])
        return self._say("gradient.leaf" if f["grad_shape"] is None else "gradient.leaf_with_grad")

    def _groups(self) -> dict[str, list[list[object]]]:
        groups: dict[str, list[list[object]]] = {}
        for seen in self.seen:
            groups.setdefault(seen.group, []).append(self._seen_row(seen))
        return groups

    def _headers(self) -> list[str]:
        return [self._say(f"header.{name}") for name in ("expression", "gives", "strides", "memory")]

    def _seen_row(self, seen: Seen) -> list[object]:
        if seen.memory == "refused":
            return [seen.expression, self._say("memory_word.refused"), "", shorten(seen.refusal, 60)]
        gives = seen.dtype if seen.shape is None else f"{seen.dtype} {_tuple(seen.shape)}"
        if seen.device and seen.device != self.facts["device"]:
            gives += f" {seen.device}"
        word = self._say(f"memory_word.{seen.memory}")
        if seen.writes_through is not None:
            word += "; " + self._say("writes_through.yes" if seen.writes_through else "writes_through.no")
        return [seen.expression, gives, _tuple(seen.strides) if seen.strides is not None else "", word]


def card(tensor: Tensor, language: str = "en") -> Card:
    """The card of a tensor; `print` it, let a notebook show it, or take `to_dict()`.

    The tensor, the random state and any running trace are left as they were. Cost is bounded: statistics of more than
    MEASURED elements are over SAMPLED of them, and nothing larger than STAND_IN elements is copied. Raises TraceError
    for what is not a tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TraceError(
            f"expected a torch.Tensor, got {type(tensor).__name__}.",
            "torch.as_tensor(...) makes one from numbers or NumPy.",
        )
    with _disable_current_modes(), torch.no_grad():
        strided = tensor.layout == torch.strided and not tensor.is_nested
        readable = strided and not tensor.is_meta and not tensor.is_quantized and type(tensor) in _PLAIN
        seen, stand_in = _tried(tensor) if strided and not tensor.is_quantized else ([], "none")
        return Card(
            facts=_facts(tensor),
            statistics=_statistics(tensor.detach()) if readable else None,
            values=_values(tensor.detach()) if readable and tensor.numel() else None,
            seen=seen,
            stand_in=stand_in,
            language=language,
        )


_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def rank_in_words(n_dims: int) -> str:
    """scalar, vector, matrix; beyond that the number of dimensions says it."""
    return ("scalar", "vector", "matrix")[n_dims] if n_dims < 3 else f"{n_dims}-dimensional tensor"


def _facts(t: Tensor) -> dict[str, Any]:
    strided = t.layout == torch.strided and not t.is_nested
    storage_bytes = t.untyped_storage().nbytes() if strided else None
    n_bytes = t.numel() * t.element_size()
    base = t._base if strided else None
    kinds = {
        "parameter": isinstance(t, torch.nn.Parameter),
        "leaf": t.is_leaf and t.requires_grad,
        "complex": t.is_complex(),
        "conjugated lazily": t.is_conj(),
        "negated lazily": t.is_neg(),
        "inference mode": t.is_inference(),
        "pinned": t.device.type == "cpu" and strided and torch.cuda.is_available() and t.is_pinned(),
        "without numbers": t.is_meta,
        "quantized": t.is_quantized,
        str(t.layout).removeprefix("torch."): t.layout != torch.strided,
        type(t).__name__: type(t) not in _PLAIN,
    }
    return {
        "rank": rank_in_words(t.dim()),
        "dimensions": t.dim(),
        "shape": list(t.shape),
        "elements": t.numel(),
        "dtype": _dtype(t.dtype),
        "device": str(t.device),
        "layout": str(t.layout).removeprefix("torch."),
        "strides": list(t.stride()) if strided else None,
        "offset": t.storage_offset() if strided else None,
        "contiguous": t.is_contiguous() if strided else None,
        "overlapping": strided and _overlaps(t),
        "item_bytes": t.element_size(),
        "bytes": n_bytes,
        "storage_bytes": storage_bytes,
        "shares_storage": storage_bytes is not None and storage_bytes > n_bytes,
        "view_of": None if base is None else {"shape": list(base.shape), "strides": list(base.stride())},
        "requires_grad": t.requires_grad,
        "leaf": t.is_leaf,
        "grad_fn": type(t.grad_fn).__name__ if t.grad_fn is not None else None,
        "grad_shape": list(t.grad.shape) if t.is_leaf and t.grad is not None else None,
        "kinds": [name for name, yes in kinds.items() if yes],
    }


def _overlaps(t: Tensor) -> bool:
    """Whether several elements sit in the same place: a stride of zero, what `expand` makes."""
    return any(stride == 0 and length > 1 for stride, length in zip(t.stride(), t.shape, strict=True))


def _statistics(t: Tensor) -> dict[str, Any] | None:
    if not t.numel():
        return None
    numbers = t
    if t.numel() > MEASURED:
        places = torch.linspace(0, t.numel() - 1, SAMPLED, dtype=torch.float64).round().long()  # MPS has no float64
        numbers = t[torch.unravel_index(places.to(t.device), t.shape)]
    if t.dtype == torch.bool:
        numbers = numbers.to(torch.uint8)
    return asdict(Statistics.of(numbers)) | {"measured": numbers.numel()}


def _values(t: Tensor) -> Any:
    """Nested lists of numbers; None stands for what is left out: the middle of a long dimension, all but one matrix."""
    if t.dim() == 0:
        return t.item()
    if t.dim() > 2:
        rest = [None] if t.shape[0] > 1 else []
        return [_values(t[0]), *rest]
    long = t.shape[0] > 2 * EDGE + 1
    ends = [*range(EDGE), None, *range(t.shape[0] - EDGE, t.shape[0])] if long else range(t.shape[0])
    return [None if k is None else _values(t[k]) for k in ends]


def _shown(values: Any, depth: int = 0) -> str:
    """The nested lists as text, one row of the innermost matrix to a line."""
    if not isinstance(values, list):
        return "..." if values is None else str(values) if isinstance(values, bool | complex) else number(values)
    if not any(isinstance(v, list) for v in values):
        return "[" + "  ".join(_shown(v) for v in values) + "]"
    return "[" + f"\n{' ' * (depth + 1)}".join(_shown(v, depth + 1) for v in values) + "]"


def _tried(tensor: Tensor) -> tuple[list[Seen], Literal["copy", "meta"]]:
    """Tries the usual expressions on a stand-in."""
    stand_in, kind = _stand_in(tensor)
    seen = [
        _try(group, expression, action, stand_in) for group, expression, action in _expressions(stand_in, tensor.device)
    ]
    seen.append(_numpy(tensor, stand_in))
    return seen + [_try("writing", e, action, stand_in) for e, action in _WRITES], kind


def _stand_in(t: Tensor) -> tuple[Tensor, Literal["copy", "meta"]]:
    """A tensor of the same shape, strides, dtype and place in autograd, with memory of its own, or none."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    without_numbers = max(span, t.numel()) > STAND_IN or t.is_meta or type(t) not in _PLAIN
    if without_numbers:
        memory = torch.empty(span, dtype=t.dtype, device="meta")
    else:
        memory = t.detach().as_strided((span,), (1,), t.storage_offset()).clone()
    if t.is_leaf:
        memory = memory.as_strided(t.shape, t.stride()).detach().requires_grad_(t.requires_grad)
    else:
        with torch.enable_grad():
            memory = memory.requires_grad_().clone().as_strided(t.shape, t.stride())
    return memory, "meta" if without_numbers else "copy"


Action = Callable[[Tensor], Any]
_WRITES: list[tuple[str, Action]] = [("t.add_(1)", lambda t: t.add_(1)), ("t.mul_(0.5)", lambda t: t.mul_(0.5))]


def _expressions(t: Tensor, device: torch.device) -> list[tuple[str, str, Action]]:
    """(group, how it is written, what it does) for everything that makes sense for a tensor of this rank and dtype."""
    wide, narrow = (torch.complex128, torch.complex64) if t.is_complex() else (torch.float64, torch.float32)
    other = narrow if t.dtype == wide else wide
    found: list[tuple[str, str, Action]] = [
        ("numbers", "t + 1", lambda t: t + 1),
        ("numbers", "t * 0.5", lambda t: t * 0.5),
        ("numbers", "t / 2", lambda t: t / 2),
        ("numbers", "t == 0", lambda t: t == 0),
        ("numbers", "torch.tensor(1)", lambda t: torch.tensor(1, device=t.device)),
        ("numbers", "torch.tensor(0.5)", lambda t: torch.tensor(0.5, device=t.device)),
        ("to", f"t.to({t.dtype})", lambda t: t.to(t.dtype)),
        ("to", f"t.to({other})", lambda t: t.to(other)),
        ("to", f't.to("{device}")', lambda t: t.to(t.device)),
    ]
    if torch.cuda.is_available() and t.device.type in ("cpu", "cuda"):
        away = "cuda" if device.type == "cpu" else "cpu"
        found.append(("to", f't.to("{away}")', lambda t: t.to(away)))
    found += [
        ("shape", "t.view(-1)", lambda t: t.view(-1)),
        ("shape", "t.reshape(-1)", lambda t: t.reshape(-1)),
        ("shape", "t.contiguous()", lambda t: t.contiguous()),
        ("shape", "t.clone()", lambda t: t.clone()),
        ("shape", "t.detach()", lambda t: t.detach()),
        ("shape", "t.unsqueeze(0)", lambda t: t.unsqueeze(0)),
    ]
    if t.dim() == 2:
        found += [
            ("transpose", "t.T", lambda t: t.T),
            ("transpose", "t.T.reshape(-1)", lambda t: t.T.reshape(-1)),
            ("transpose", "t.T.contiguous()", lambda t: t.T.contiguous()),
        ]
    elif t.dim() > 2:
        found += [
            ("transpose", "t.mT", lambda t: t.mT),
            ("transpose", "t.transpose(0, 1)", lambda t: t.transpose(0, 1)),
            ("transpose", "t.transpose(0, 1).contiguous()", lambda t: t.transpose(0, 1).contiguous()),
        ]
    found.append(("matmul", *_matmul(t)))
    return found + _indexing(t)


def _matmul(t: Tensor) -> tuple[str, Action]:
    """The product of the tensor with itself, without numbers where they would be many."""
    if t.dim() < 2:
        return "t @ t", lambda t: t @ t
    large = t.numel() * t.shape[-2] > STAND_IN * 16
    return "t @ t.mT" if t.dim() > 2 else "t @ t.T", lambda t: (s := t.to("meta") if large else t) @ s.mT


def _indexing(t: Tensor) -> list[tuple[str, str, Action]]:
    if t.dim() == 0:
        return [("indexing", "t.item()", lambda t: t.item()), ("indexing", "t[None]", lambda t: t[None])]
    found: list[tuple[str, str, Action]] = []
    if t.shape[0]:
        found += [
            ("indexing", "t[0]", lambda t: t[0]),
            ("indexing", "t[[0]]", lambda t: t[[0]]),
        ]
    if t.dim() > 1 and t.shape[-1]:
        found.append(("indexing", "t[..., 0]", lambda t: t[..., 0]))
    found += [("indexing", "t[::2]", lambda t: t[::2]), ("indexing", "t[None]", lambda t: t[None])]
    if not t.is_meta:  # how many elements a mask keeps depends on the numbers
        found.append(("indexing", "t[t != 0]", lambda t: t[t != 0]))
    return found


def _try(group: str, expression: str, action: Action, t: Tensor) -> Seen:
    """Runs it as the user would, with gradients on, and looks at what came out; a refusal is an answer too."""
    try:
        with torch.enable_grad():
            result = action(t)
    except (RuntimeError, TypeError, IndexError) as refusal:
        return Seen(group, expression, "refused", refusal=_first_sentence(str(refusal)))
    if not isinstance(result, Tensor):
        return Seen(group, expression, "no_memory", dtype=f"Python {type(result).__name__}")
    same = result.untyped_storage()._cdata == t.untyped_storage()._cdata
    alone: Memory = "written" if group == "writing" else "same_object"
    memory: Memory = alone if result is t else "same_memory" if same else "own_memory"
    tried = result is not t and not (t.is_meta or result.is_meta) and t.numel() and result.numel()
    written = _writes_through(t, result) if tried else None
    shape, strides = list(result.shape), list(result.stride())
    # results without numbers belong to a tensor that has them
    device = "" if result.is_meta else str(result.device)
    return Seen(group, expression, memory, _dtype(result.dtype), device, shape, strides, written)


def _writes_through(t: Tensor, result: Tensor) -> bool:
    """Writes another number into one element of the result, looks whether the tensor changed, and takes it back."""
    here, before = result.detach()[(0,) * result.dim()], t.detach().clone()
    old = here.clone()
    here.copy_(here == 0)
    changed = not torch.equal(_bits(t.detach()), _bits(before))
    here.copy_(old)
    return changed


def _bits(t: Tensor) -> Tensor:
    """The bytes of the elements, so that NaN is equal to itself and every dtype can be compared."""
    return t.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _numpy(tensor: Tensor, stand_in: Tensor) -> Seen:
    """NumPy: an array over the same memory, found by its address. On the tensor itself, which is only read."""
    numpy_of = tensor if stand_in.is_meta else stand_in
    try:
        with torch.enable_grad():
            array = numpy_of.numpy()
    except (RuntimeError, TypeError) as refusal:
        return Seen("numpy", "t.numpy()", "refused", refusal=_first_sentence(str(refusal)))
    same = array.__array_interface__["data"][0] == numpy_of.data_ptr() or not array.size
    strides = [step // array.itemsize for step in array.strides]
    memory: Memory = "same_memory" if same else "own_memory"
    return Seen("numpy", "t.numpy()", memory, str(array.dtype), "", list(array.shape), strides)


def _first_sentence(message: str) -> str:
    return message.splitlines()[0].split(". ")[0].strip()


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tuple(numbers: list[int]) -> str:
    return str(tuple(numbers))


def _rounded(statistics: dict[str, Any]) -> dict[str, Any]:
    """For a sentence: numbers as people read them, zeros as a share."""
    said = {k: number(v) for k, v in statistics.items() if k != "count"}
    share = statistics["zeros"] / statistics["measured"]
    return said | {"zeros": f"{100 * share:.3g}%" if math.isfinite(share) else "-"}
