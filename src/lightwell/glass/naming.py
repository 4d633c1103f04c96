"""Names for what a trace shows: the path of the module that is running, and what the program calls its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from lightwell.glass.recording import Module
from lightwell.glass.values import Values


class Names:
    """Follows the modules as they are entered and left; when the trace ends, gives names to its values.

    One root module: paths are those of its state dict ("blocks.0.attn.qkv"). Several: each path begins with the
    variable that holds its root, or with the root's class.
    """

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self.current: Module | None = None
        self._roots: list[tuple[torch.nn.Module, Module]] = []
        self._records: dict[int, Module] = {}  # id of a module (held by its root) -> its record
        self._paths: dict[int, tuple[str, Module]] = {}
        self._held: list[torch.nn.Module] = []
        self._by_path: dict[tuple[int, str], Module] = {}  # id of the root's record, path -> record

    @contextmanager
    def inside(self, module: torch.nn.Module) -> Iterator[None]:
        """While `module` runs, it is the current one."""
        outer, self.current = self.current, self._records.get(id(module)) or self._first_time(module)
        self.current.calls += 1
        try:
            yield
        finally:
            self.current = outer

    def finish(self, values: Values, frame: FrameType) -> None:
        """Names from the modules and from the variables of the function that opened the trace."""
        variables = {id(v): name for name, v in (frame.f_globals | frame.f_locals).items() if not name.startswith("_")}
        prefixes = self._prefixes(variables)
        for (root, record), prefix in zip(self._roots, prefixes):
            if prefix:
                self._prepend(record, prefix)
            for kind in (root.named_parameters, root.named_buffers):
                for name, tensor in kind(remove_duplicate=False):
                    _give(values, tensor, f"{prefix}.{name}" if prefix else name)
        for name, variable in (frame.f_globals | frame.f_locals).items():
            if isinstance(variable, Tensor) and not name.startswith("_"):
                _give(values, variable, name)
        self._held.clear()

    def _first_time(self, module: torch.nn.Module) -> Module:
        path, parent = self._paths.get(id(module), (None, None))
        if path is None and self.current is not None:
            path, parent = f"{self.current.path}.({type(module).__name__})".lstrip("."), self.current
        if path is None:
            return self._new_root(module)
        return self._record(module, path, parent)

    def _new_root(self, module: torch.nn.Module) -> Module:
        model = getattr(module, "_orig_mod", module)  # torch.compile's wrapper has the model inside
        record = self._records[id(module)] = self._record(model, "", None)
        self._held.append(module)
        self._roots.append((model, record))
        for name, child in model.named_modules():
            if child is not model:
                self._paths[id(child)] = (name, record)
        return record

    def _record(self, module: torch.nn.Module, path: str, parent: Module | None) -> Module:
        record = Module(path, type(module).__name__, self._nearest(path, parent))
        self._records[id(module)] = self._by_path[id(_root_of(record)), path] = record
        self._held.append(module)
        self.modules.append(record)
        return record

    def _nearest(self, path: str, root: Module | None) -> Module | None:
        """The record of the longest path above this one."""
        whole = id(_root_of(root))
        while path:
            path = path.rpartition(".")[0]
            if (whole, path) in self._by_path:
                return self._by_path[whole, path]
        return root

    def _prefixes(self, variables: dict[int, str]) -> list[str]:
        if len(self._roots) < 2:
            return [""] * len(self._roots)
        taken: dict[str, int] = {}
        prefixes = []
        for root, _ in self._roots:
            name = variables.get(id(root), type(root).__name__)
            taken[name] = taken.get(name, 0) + 1
            prefixes.append(name if taken[name] == 1 else f"{name}{taken[name]}")
        return prefixes

    def _prepend(self, record: Module, prefix: str) -> None:
        record.path = f"{prefix}.{record.path}".rstrip(".")
        for child in record.children:
            self._prepend(child, prefix)


def _root_of(module: Module | None) -> Module | None:
    while module is not None and module.parent is not None:
        module = module.parent
    return module


def _give(values: Values, tensor: Tensor, name: str) -> None:
    """The first name that a value gets is kept: a tied weight is called after its first place."""
    for value in values.versions_of(tensor):
        value.name = value.name or name
