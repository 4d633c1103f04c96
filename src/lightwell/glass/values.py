"""Tensor contents at one moment, kept as cheaply as possible: by reference, copied only before something writes over
them.

A `Value` is what a tensor held when an operation read or made it. PyTorch writes in place (`x += y`, an optimizer's
step), so one tensor can be many values. `Values` gives each its identity: the same tensor object, or another tensor
that shows the same elements of the same storage, is the same value until somebody writes to that storage; before the
write, the values that live there are copied out. After the trace ends nobody is asked before a write, but PyTorch
counts writes (`Tensor._version`), and a value that was written over later is refused instead of shown wrong.

With a `limit` in bytes, values beyond it are kept as statistics and a fixed sample of their elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.errors import TraceError

SAMPLE = 64  # elements kept of a value that is too large to keep: evenly spaced, the same ones every time

Kept = Literal["reference", "copy", "statistics", "nothing"]
Role = Literal["outside", "activation", "detached", "gradient"]  # detached: the same numbers, cut off from the graph


@dataclass(frozen=True)
class Statistics:
    """What is in a tensor, in a few numbers. Minimum, maximum, mean and rms are over the finite elements (None: there
    are none); `zeros`, `nan`, `inf`, `minus_inf` are counts.
    """

    count: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    rms: float | None
    zeros: int
    nan: int
    inf: int
    minus_inf: int

    @classmethod
    def of(cls, tensor: Tensor) -> Statistics:
        """Measured in float64 (complex numbers by their magnitude)."""
        with _disable_current_modes(), torch.no_grad():
            flat = (tensor if tensor.layout == torch.strided else tensor.to_dense()).detach().reshape(-1)
            if flat.is_floating_point() and flat.element_size() == 1:
                flat = flat.float()  # float8 has few operations of its own
            if (
                flat.is_floating_point()
                and flat.numel()
                and math.isfinite(total := float(flat.sum(dtype=torch.float64)))
            ):
                return cls._of_finite(flat, total)
            numbers = (flat.abs() if flat.is_complex() else flat).double()
            nan, inf = int(numbers.isnan().sum()), int((numbers == math.inf).sum())
            minus_inf = int((numbers == -math.inf).sum())
            finite = numbers[numbers.isfinite()] if nan or inf or minus_inf else numbers
            if not finite.numel():
                return cls(flat.numel(), None, None, None, None, 0, nan, inf, minus_inf)
            scale = float(finite.abs().max()) or 1.0  # squares of large numbers would overflow
            rms = scale * float((finite / scale).square().mean().sqrt())
            zeros = int((finite == 0).sum())
            low, high, mean = float(finite.min()), float(finite.max()), float(finite.mean())
            return cls(flat.numel(), low, high, mean, rms, zeros, nan, inf, minus_inf)

    @classmethod
    def _of_finite(cls, flat: Tensor, total: float) -> Statistics:
        """The same, without a copy: a finite sum has neither NaN nor infinities in it."""
        low, high = torch.aminmax(flat)
        rms = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) / math.sqrt(flat.numel())
        zeros = flat.numel() - int(flat.count_nonzero())
        return cls(flat.numel(), float(low), float(high), total / flat.numel(), rms, zeros, 0, 0, 0)


class Value:
    """What one tensor held at one moment.

    `producer` is the id of the operation that made it and `output` which of its outputs it is; None: it came from
    outside (a parameter, the data, something made before the trace began).
    """

    __slots__ = (
        "_aliases",
        "_content",
        "_statistics",
        "_version",
        "device",
        "dtype",
        "id",
        "kept",
        "name",
        "output",
        "producer",
        "requires_grad",
        "role",
        "sample",
        "shape",
        "source",
    )

    def __init__(self, identity: int, tensor: Tensor, producer: int | None, output: int, role: Role) -> None:
        self.id = identity
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.device = tensor.device
        self.requires_grad = tensor.requires_grad
        self.producer = producer
        self.output = output
        self.role = role
        self.name = ""
        self.kept: Kept = "reference"
        self.source: Tensor | None = tensor  # the tensor object the program uses; its content may move on
        self.sample: list[float] | None = None
        self._content: Tensor | None = tensor
        self._aliases: list[Tensor] = []
        self._version: int | None = None
        self._statistics: Statistics | None = None

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<Value {self.id}{name}: {str(self.dtype).removeprefix('torch.')}{list(self.shape)}, {self.kept}>"

    @property
    def numel(self) -> int:
        return self.shape.numel()

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point or self.dtype.is_complex

    def read(self) -> Tensor:
        """The content, outside any graph. Raises TraceError where it was not kept, or was written over since."""
        content = self._content
        if content is None:
            raise TraceError(
                f"expected the numbers of {self.title}, got {self.kept}: they were beyond the trace's memory limit.",
                "Raise memory_limit_bytes, or trace with level='dissect'.",
            )
        if self._version is not None and _version_of(content) != self._version:
            raise TraceError(
                f"expected {self.title} as it was in the traced step, got a tensor written over in place since then.",
                "Ask before the optimizer's step, or put the step inside the trace.",
            )
        if content.is_meta:
            raise TraceError(f"expected the numbers of {self.title}, got a tensor on the meta device, which has none.")
        with _disable_current_modes():
            return content.detach() if content.layout == torch.strided else content.detach().to_dense()

    @property
    def readable(self) -> bool:
        """Whether `read` gives the numbers."""
        current = self._version is None or (self._content is not None and _version_of(self._content) == self._version)
        return self._content is not None and not self._content.is_meta and current

    @property
    def title(self) -> str:
        return self.name or f"value {self.id}"

    def statistics(self) -> Statistics | None:
        """Measured when first asked for; None if the numbers were not kept and not measured."""
        if self._statistics is None and self.readable and self.dtype != torch.bool:
            self._statistics = Statistics.of(self.read())
        return self._statistics

    def elements(self, limit: int) -> list[float] | None:
        """All elements in order, if there are at most `limit` and they can be read."""
        if self.numel > limit or not self.readable:
            return None
        with _disable_current_modes():
            numbers = self.read()
            real = numbers.abs() if numbers.is_complex() else numbers.byte() if numbers.dtype == torch.bool else numbers
            return real.reshape(-1).tolist()

    def forget(self) -> None:
        """Keep statistics and a sample instead of the numbers."""
        tensor = self._content
        assert tensor is not None
        if tensor.numel() and tensor.dtype != torch.bool and not tensor.is_meta:
            self._statistics = Statistics.of(tensor)
            with _disable_current_modes(), torch.no_grad():
                flat = tensor.detach().reshape(-1)
                self.sample = [float(x.real) for x in flat[sample_indices(flat.numel(), flat.device)].cpu()]
        self.kept = "statistics" if self._statistics is not None else "nothing"
        self.source, self._content = None, None
        self._aliases.clear()


def sample_indices(count: int, device: torch.device | None = None) -> Tensor:
    """Which elements of a flattened tensor make its fixed sample: at most SAMPLE, evenly spaced, first and last
    included.
    """
    return torch.linspace(0, count - 1, min(SAMPLE, count), dtype=torch.float64, device=device).round().long()


class Values:
    """All values of a trace, and which tensor shows which of them now."""

    def __init__(self, limit: int | None = None) -> None:
        self.all: list[Value] = []
        self.limit = limit
        self.held_bytes = 0
        self.forgotten = 0
        self.out_of_memory = False
        self._current: dict[int, Value] = {}  # id of a tensor object that a value holds -> that value
        self._by_storage: dict[int, list[Value]] = {}
        self._shown_at: dict[int, dict[tuple[Any, ...], Value]] = {}  # storage -> geometry -> a forgotten value there
        self._reserved: dict[int, StorageWeakRef] = {}  # keeps the address of a dropped storage from being used again
        self._index: dict[int, list[Value]] = {}  # id of a tensor object -> the values it showed; made at the end
        self._writer: dict[int, int | None] = {}  # storage -> the operation that wrote to it last

    def of(self, tensor: Tensor) -> Value:
        """The value that this tensor shows now; a new one, from outside, if the trace has not seen it."""
        value = self._current.get(id(tensor))
        if value is None:
            value = self._same_elements(tensor) or self._seen_through_a_view(tensor)
            value = value or self.add(tensor, None, 0, "outside")
        if tensor.requires_grad:
            value.requires_grad = True
        return value

    def known(self, tensor: Tensor) -> Value | None:
        """The value that this tensor shows now, if the trace has seen it."""
        return self._current.get(id(tensor)) or self._same_elements(tensor)

    def add(self, tensor: Tensor, producer: int | None, output: int, role: Role = "activation") -> Value:
        """A new value: `tensor` now. What the program holds anyway (role "outside") is not counted as memory."""
        value = Value(len(self.all), tensor, producer, output, role)
        self.all.append(value)
        key = _storage_of(tensor)
        there = self._by_storage.get(key) if key is not None else None
        is_new = role != "outside" and there is None and key is not None
        if is_new and not self._fits(tensor):
            self._drop(value, tensor)
            return value
        self._current[id(tensor)] = value
        if there is not None:
            there.append(value)
        elif key is not None:
            self._by_storage[key] = [value]
        return value

    def add_gradient(self, gradient: Tensor) -> Value:
        """The value of a gradient; several edges that hand on the very same tensor share it."""
        return self.known(gradient) or self.add(gradient, None, 0, "gradient")

    def before_write(self, tensor: Tensor, writer: int | None) -> None:
        """Copy out what lives in the storage of `tensor`, since operation `writer` is about to write there."""
        key = _storage_of(tensor)
        if key is None:
            return
        values = self._by_storage.pop(key, None)
        self._shown_at.pop(key, None)
        if values is None:
            return
        if apart := [value for value in values if _is_apart(value.source, tensor)]:
            self._by_storage[key] = apart
            values = [value for value in values if value not in apart]
        self._writer[key] = writer
        for value in values:
            self._leave(value)
        try:
            _copy_out([value for value in values if value.kept == "reference"], tensor)
        except (torch.OutOfMemoryError, MemoryError):
            self.out_of_memory = True
            for value in values:
                value.forget()

    def finish(self) -> None:
        """The trace ends: from here on only PyTorch's own count of writes protects what is kept by reference."""
        index = self._index
        for value in self.all:
            content = value._content
            if content is not None and value.kept == "reference":
                value._version = _version_of(content)
                value.requires_grad = value.requires_grad or content.requires_grad
            if value.source is not None:
                index.setdefault(id(value.source), []).append(value)
            for tensor in value._aliases:
                index.setdefault(id(tensor), []).append(value)
        self._by_storage, self._shown_at, self._reserved, self._writer = {}, {}, {}, {}

    def versions_of(self, tensor: Tensor) -> list[Value]:
        """Every value that this tensor object has shown, oldest first. Once the trace has ended."""
        return self._index.get(id(tensor), [])

    def at(self, tensor: Tensor) -> list[Value]:
        """Every value of the elements that this tensor shows, whatever object showed them. Once the trace has ended."""
        geometry = _geometry(tensor)
        return [v for v in self.all if v.source is not None and _geometry(v.source) == geometry]

    def _leave(self, value: Value) -> None:
        for tensor in (value.source, *value._aliases):
            if self._current.get(id(tensor)) is value:
                del self._current[id(tensor)]

    def _same_elements(self, tensor: Tensor) -> Value | None:
        """Another tensor object over the same elements: what autograd does to the result of a view."""
        key = _storage_of(tensor)
        if key is None:
            return None
        geometry = None
        for value in reversed(self._by_storage.get(key, ())):
            source = value.source
            if tensor.requires_grad and (tensor.is_leaf or value.role == "detached"):
                continue  # a leaf has a gradient of its own, whose memory it may share
            if source is not None and source.shape == tensor.shape and source.dtype == tensor.dtype:
                geometry = geometry or _geometry(tensor)
                if _geometry(source) == geometry:
                    value._aliases.append(tensor)  # held, so that its id stays its own
                    self._current[id(tensor)] = value
                    return value
        dropped = self._shown_at.get(key)
        return dropped.get(_geometry(tensor)) if dropped else None

    def _seen_through_a_view(self, tensor: Tensor) -> Value | None:
        """A tensor whose storage an operation wrote to by way of another view of it."""
        key = _storage_of(tensor)
        if key is None or key not in self._writer or key not in self._by_storage:
            return None
        return self.add(tensor, self._writer[key], 0)

    def _fits(self, tensor: Tensor) -> bool:
        if self.limit is None:
            return True
        size = tensor.untyped_storage().nbytes()
        if self.held_bytes + size > self.limit:
            return False
        self.held_bytes += size
        return True

    def _drop(self, value: Value, tensor: Tensor) -> None:
        key = _storage_of(tensor)
        assert key is not None
        self._reserved.setdefault(key, StorageWeakRef(tensor.untyped_storage()))
        shown = self._shown_at.setdefault(key, {})
        if value.role != "detached" or _geometry(tensor) not in shown:
            shown[_geometry(tensor)] = value
        self.forgotten += 1
        value.forget()


def _storage_of(tensor: Tensor) -> int | None:
    """The identity of the memory behind a tensor; None for layouts without one block of it (sparse)."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return (id(tensor),)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _version_of(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _is_apart(tensor: Tensor | None, written: Tensor) -> bool:
    """Whether autograd knows nothing of the storage that two tensors share, and they share no element of it: pieces of
    `unsafe_split`, which an nn.GRU writes to one by one."""
    if tensor is None or tensor is written or tensor._is_view() or written._is_view() or tensor.dtype != written.dtype:
        return False
    with _disable_current_modes(), torch.no_grad():
        size = written.untyped_storage().nbytes() // written.element_size()
        marked = torch.zeros(size, dtype=torch.bool)
        marked.as_strided(written.shape, written.stride(), written.storage_offset()).fill_(True)
        return not marked.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).any()


def _copy_out(values: list[Value], written: Tensor) -> None:
    """Give each value its own content: one copy of the whole storage for all, unless they need less than that."""
    if not values:
        return
    storage = written.untyped_storage()
    with _disable_current_modes(), torch.no_grad():
        whole = sum(v.numel * v.dtype.itemsize for v in values) > storage.nbytes()
        copied = storage.clone() if whole else None
        for value in values:
            old = value._content
            assert old is not None
            if copied is None:
                value._content = old.detach().clone()
            else:
                fresh = torch.empty(0, dtype=old.dtype, device=old.device)
                value._content = fresh.set_(copied, old.storage_offset(), old.shape, old.stride())
            value.kept = "copy"
