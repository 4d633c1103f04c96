"""Records a step as it runs: what the program called, what PyTorch ran for it, and every gradient on its way back.

    with lightwell.trace() as t:
        loss = model(ids, targets)
        loss.backward()
    print(t.explain(model.head.weight, index=(3, 5)))

Three layers are watched at once. A TorchFunctionMode sees the calls of the program, a TorchDispatchMode below autograd
sees every kernel of forward, backward and optimizer, and hooks on autograd's nodes see the gradients (`joining`).
Nothing is computed that the program would not compute: tensors are kept by reference, and copied only before something
writes over them. When the trace ends, every hook and mode is gone and the model is exactly as before.

A compiled model steps aside while a dispatch mode is active and runs its Python code; the trace then says that it shows
an eager run.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from types import CodeType, FrameType, TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch._ops import OpOverload
from torch.autograd.function import _SingleLevelFunction
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from lightwell.errors import TraceError
from lightwell.glass.joining import Nodes
from lightwell.glass.naming import Names
from lightwell.glass.recording import SEQUENCES, ApiCall, Operation, Pass, Phase
from lightwell.glass.result import Trace
from lightwell.glass.values import Role, Value, Values

Level = Literal["dissect", "snapshot"]

SNAPSHOT_BYTES = 1 << 30  # what a snapshot keeps if it is not told: 1 GiB of tensors made in the step
_TORCH = os.path.dirname(torch.__file__) + os.sep
_CHECKPOINT = os.path.join(_TORCH, "utils", "checkpoint.py")
_COMPILED = os.path.join(_TORCH, "_dynamo", "eval_frame.py")


def trace(level: Level = "dissect", *, memory_limit_bytes: int | None = None, open_attention: bool = False) -> Recorder:
    """Record everything that happens inside the `with` block; its target is the `Trace`.

    level               "dissect" keeps every tensor; "snapshot" as many as fit, and statistics of the rest
    memory_limit_bytes  how much may be kept of tensors made in the step (default: 1 GiB for a snapshot, else no limit)
    open_attention      run scaled dot product attention in its parts (scores, softmax, product) instead of one fused
                        kernel, so that each is an operation of its own; the sums are rounded a little differently

    Raises TraceError for options that are not there, and on entering while another trace is open.
    """
    if level not in get_args(Level):
        raise TraceError(
            f"expected level 'dissect' or 'snapshot', got {level!r}.", "Statistics during training are the pulse."
        )
    if memory_limit_bytes is not None and memory_limit_bytes < 0:
        raise TraceError(f"expected memory_limit_bytes of 0 or more, got {memory_limit_bytes}.")
    if memory_limit_bytes is None and level == "snapshot":
        memory_limit_bytes = SNAPSHOT_BYTES
    return Recorder(level, memory_limit_bytes, open_attention)


class Recorder:
    """One open trace. Use `trace()`."""

    # Modes belong to a thread, but module hooks and the engine to the whole process: one trace at a time.
    _open: Recorder | None = None

    def __init__(self, level: Level, limit: int | None, open_attention: bool) -> None:
        self._level = level
        self._open_attention = open_attention
        self._values = Values(limit)
        self._operations: list[Operation] = []
        self._calls: list[ApiCall] = []
        self._passes: list[Pass] = []
        self._disagreements: list[str] = []
        self._notes: list[str] = []
        self._names = Names()
        self._nodes = Nodes(self._operations, self._values, self._disagreements)
        self._stack = ExitStack()
        self._thread = 0
        self._depth = 0  # engines running inside one another
        self._parent: int | None = None
        self._optimizing = False
        self._compiled = False
        self._call: Any = None  # the function that the program called; the ApiCall, when a kernel of it has run
        self._call_frame: FrameType | None = None
        self._codes: set[CodeType] = set()
        self._recomputed: dict[int, int] = {}  # operation whose node asked -> the last one recomputed for it
        self.trace = Trace()

    def __enter__(self) -> Trace:
        if Recorder._open is not None:
            raise TraceError(
                "expected no other trace to be open, got one inside another.", "Close the outer one first."
            )
        if self._thread:
            raise TraceError("expected a trace of its own for each block, got one that was used before.")
        Recorder._open = self
        self._thread = threading.get_ident()
        with ExitStack() as stack:
            stack.callback(self._close)
            if gc.isenabled():  # each run of the collector would walk over everything that was recorded so far
                gc.disable()
                stack.callback(gc.enable)
            if self._open_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            for handle in (
                register_optimizer_step_pre_hook(self._begin_optimizer),
                register_optimizer_step_post_hook(self._end_optimizer),
            ):
                stack.callback(handle.remove)
            stack.enter_context(_Replaced(torch.nn.Module, "__call__", self._call_module()))
            stack.enter_context(_Replaced(torch.autograd, "_engine_run_backward", self._engine()))
            stack.enter_context(_Replaced(_SingleLevelFunction, "apply", self._apply()))
            stack.callback(self._nodes.remove)
            stack.enter_context(_Functions(self))
            stack.enter_context(_Kernels(self))
            self._stack = stack.pop_all()
        return self.trace

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()
        self._values.finish()
        self._names.finish(self._values, sys._getframe(1))
        if error is not None:
            self._notes.append(f"the traced block ended early with {type(error).__name__}")
        self._fill()

    def _close(self) -> None:
        Recorder._open = None

    def _fill(self) -> None:
        if self._compiled:
            self._notes.append("a compiled model ran as plain Python here: the values are those of an eager run")
        if self._values.forgotten:
            self._notes.append(
                f"{self._values.forgotten} tensors were beyond the memory limit of {self._values.limit} bytes: "
                "statistics and a sample of each were kept"
            )
        if self._values.out_of_memory:
            self._notes.append("memory ran out while copying before a write: statistics were kept instead")
        devices = sorted({str(v.device) for v in self._values.all})
        if len(devices) > 1:
            self._notes.append(f"the tensors are on several devices ({', '.join(devices)}); each replay is on its own")
        self.trace.fill(
            level=self._level,
            values=self._values,
            operations=self._operations,
            calls=self._calls,
            modules=self._names.modules,
            passes=self._passes,
            accumulations=self._nodes.accumulations,
            disagreements=self._disagreements,
            notes=self._notes,
            eager=self._compiled,
        )

    # --- the program's calls -----------------------------------------------------------------------------------------

    def api_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
        """One call of the program, entered in the trace when its first kernel runs: reading `x.shape` runs none."""
        outer = self._call, self._call_frame
        self._call, self._call_frame = function, frame
        try:
            return function(*args, **kwargs)
        finally:
            self._call, self._call_frame = outer

    def _where(self, operation: Operation, frame: FrameType | None) -> None:
        """Source line and API call of an operation; `frame` is used where no API call is running."""
        call = self._call
        if call is None:
            call = ApiCall(operation.name)
            self._enter_call(call, frame)
        elif not isinstance(call, ApiCall):
            call = self._call = ApiCall(_name_of(call))
            self._enter_call(call, self._call_frame)
        call.operations.append(operation.id)
        operation.call, operation.file, operation.line = call, call.file, call.line
        operation.module = self._names.current
        if operation.module is not None:
            operation.module.operations.append(operation.id)

    def _enter_call(self, call: ApiCall, frame: FrameType | None) -> None:
        call.id = len(self._calls)
        call.module = self._names.current
        self._calls.append(call)
        while frame is not None and _is_machinery(frame.f_code):
            frame = frame.f_back
        if frame is not None:
            code = frame.f_code
            call.file, call.line, call.function = code.co_filename, frame.f_lineno, code.co_qualname
            if code not in self._codes:
                self._codes.add(code)
                self._compiled = self._compiled or _on_stack(frame, _COMPILED)

    # --- kernels -----------------------------------------------------------------------------------------------------

    def kernel(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One kernel, below autograd."""
        if not isinstance(op, OpOverload):
            self._notes.append(f"{op} is a higher-order operation: it ran, but what it did inside is not shown")
            return op(*args, **kwargs)
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and not torch.is_grad_enabled():
            return self._backward_kernel(op, args, kwargs)
        name, writes = _traits(op)
        operation = Operation(len(self._operations), "kernel", name)
        operation.op, operation.parent = op, self._parent
        operation.args = tuple([self._with_values(a) for a in args])
        operation.kwargs = {name: self._with_values(a) for name, a in kwargs.items()} if kwargs else kwargs
        written = _written(writes, args, kwargs) if writes else []
        operation.phase = self._phase(written, in_backward)
        self._operations.append(operation)
        if torch.is_grad_enabled():
            self._nodes.ran(operation, torch.autograd._get_sequence_nr() - 1)
        self._where(operation, sys._getframe(2))
        if operation.phase == "recompute":
            self._pair_recomputed(operation)
        bases = _bases(written) if written and torch.is_grad_enabled() else []
        for base in bases:  # known before the write, so that it is copied out as well
            self._values.of(base)
        for tensor in written:
            self._values.before_write(tensor, operation.id)
        result = op(*args, **kwargs)
        for base in bases:
            self._values.add(base, operation.id, 0)
        if result is None:  # a write that gives nothing back, as those of optimizers to many tensors at once
            for tensor in written:
                self._values.add(tensor, operation.id, 0)
        role: Role = "detached" if operation.name == "detach" else "activation"
        operation.outputs = self._made(result, operation.id, role)
        return result

    def _backward_kernel(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arithmetic inside a node: its name and shapes are noted, the numbers are those of the node's edges."""
        writes = _traits(op)[1]
        for tensor in _written(writes, args, kwargs) if writes else ():
            self._values.before_write(tensor, None)
        result = op(*args, **kwargs)
        node = torch._C._current_autograd_node()
        operation = None if node is None else self._nodes.running(node)
        if operation is not None:
            operation.ran.append((op, [t.shape for t in _tensors(result)]))
        return result

    def _with_values(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self._values.of(argument)
        if isinstance(argument, SEQUENCES):
            return type(argument)([self._with_values(item) for item in argument])
        return argument

    def _made(self, result: Any, operation: int | None, role: Role = "activation") -> tuple[Value, ...]:
        if isinstance(result, Tensor):
            return (self._values.add(result, operation, 0, role),)
        return tuple([self._values.add(t, operation, i, role) for i, t in enumerate(_tensors(result))])

    def _phase(self, written: list[Tensor], in_backward: bool) -> Phase:
        if in_backward:
            again = self._names.current is not None or _on_stack(sys._getframe(3), _CHECKPOINT)
            return "recompute" if again else "backward"
        if self._optimizing:
            return "optimizer"
        if not self._passes or torch.is_grad_enabled():
            return "forward"
        return "optimizer" if any(t.is_leaf and t.requires_grad for t in written) else "forward"

    def _pair_recomputed(self, operation: Operation) -> None:
        """Checkpointing runs the same lines again in the same order, for the part of the forward pass that the node
        which asked for it belongs to.
        """
        node = torch._C._current_autograd_node()
        asked_by = None if node is None else self._nodes.running(node)
        if asked_by is None:
            return
        start = self._recomputed.get(asked_by.id)
        alike = [o.id for o in self._operations[: operation.id] if o.phase == "forward" and _same_line(o, operation)]
        if start is not None:
            later = [i for i in alike if i > start]
        elif asked_by.kind == "function":  # the older form of checkpointing: a custom function around its kernels
            later = [i for i in alike if i > asked_by.id]
        else:
            later = [i for i in alike if i <= asked_by.id][-1:]
        if later:
            operation.again = self._recomputed[asked_by.id] = later[0]

    # --- custom functions --------------------------------------------------------------------------------------------

    def _apply(self) -> Any:
        recorder = self

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            run = vars(torch._C._FunctionBase)["apply"].__get__(None, cls)
            backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
            if recorder._elsewhere() or _transformed() or backward:
                return run(*args, **kwargs)
            return recorder._custom_function(cls, run, args, kwargs)

        return classmethod(apply)

    def _custom_function(self, cls: Any, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A torch.autograd.Function: one operation whose derivative its author wrote; its kernels are inside it."""
        operation = Operation(len(self._operations), "function", cls.__name__)
        operation.function, operation.parent = cls, self._parent
        operation.args = tuple([self._with_values(a) for a in args])
        operation.kwargs = {name: self._with_values(a) for name, a in kwargs.items()}
        if torch._C._current_graph_task_id() != -1:
            operation.phase = "recompute"
        self._operations.append(operation)
        self._where(operation, sys._getframe(2))
        if torch.is_grad_enabled():  # its node is made next, before its forward runs
            self._nodes.ran(operation, torch.autograd._get_sequence_nr())
        outer, self._parent = self._parent, operation.id
        try:
            result = run(*args, **kwargs)
        finally:
            self._parent = outer
        operation.outputs = self._made(result, operation.id)
        return result

    # --- modules, optimizers, the engine -----------------------------------------------------------------------------

    def _elsewhere(self) -> bool:
        """Hooks of the whole process also fire for other threads, which are not being traced."""
        return threading.get_ident() != self._thread

    def _call_module(self) -> Any:
        """What runs for `module(...)`. Not a global module hook: compiled models warn about those."""
        run = torch.nn.Module.__call__

        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._elsewhere():
                return run(module, *args, **kwargs)
            with self._names.inside(module):
                return run(module, *args, **kwargs)

        return call

    def _begin_optimizer(self, *_: Any) -> None:
        self._optimizing = self._optimizing or not self._elsewhere()

    def _end_optimizer(self, *_: Any) -> None:
        self._optimizing = self._optimizing and self._elsewhere()

    def _engine(self) -> Any:
        run = torch.autograd._engine_run_backward

        def run_backward(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            if self._elsewhere():
                return run(outputs, *args, **kwargs)
            if _transformed(*args[0]):
                self._notes.append("a backward pass inside torch.func or vmap ran; it is not shown")
                return run(outputs, *args, **kwargs)
            return self._run_backward(run, outputs, args, kwargs)

        return run_backward

    def _run_backward(self, run: Any, outputs: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One pass of the backward engine: `args` are its seeds, keep_graph, create_graph, inputs."""
        create_graph, inputs = args[2], args[3]
        with torch._C.DisableTorchFunction():
            this = self._begin_pass(outputs, args[0], bool(create_graph))
            this.restricted = bool(inputs)
        self._depth += 1
        outer, self._call = self._call, None
        try:
            with self._functions():
                result = run(outputs, *args, **kwargs)
            if not kwargs.get("accumulate_grad", False):
                pairs = [(t, g) for t, g in zip(inputs, result) if isinstance(t, Tensor) and g is not None]
                this.captured = {self._values.of(t).id: g for t, g in pairs}
            return result
        except BaseException as error:
            this.failure = (str(error).splitlines() or [type(error).__name__])[0]
            raise
        finally:
            self._call = outer
            self._depth -= 1
            self._nodes.end()

    def _begin_pass(self, outputs: Sequence[Any], seeds: Sequence[Tensor | None], create_graph: bool) -> Pass:
        nested = self._depth > 0  # a checkpoint's own engine belongs to the pass that asked for it
        index = self._passes[-1].index + (not nested) if self._passes else 0
        roots = [self._values.of(t) for t in outputs if isinstance(t, Tensor)]
        given = [None if s is None else self._values.of(s) for s in seeds]
        this = Pass(index, roots, given, create_graph)
        self._passes.append(this)
        edges = [torch.autograd.graph.get_gradient_edge(t) if isinstance(t, Tensor) else t for t in outputs]
        self._nodes.watch(edge.node for edge in edges)
        self._nodes.begin(this)
        return this

    def _functions(self) -> AbstractContextManager[object]:
        """The mode that sees API calls, if the call that led here put it aside: recomputed calls are to be seen too."""
        watching = any(isinstance(mode, _Functions) for mode in _get_current_function_mode_stack())
        return nullcontext() if watching else _Functions(self)


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._recorder.api_call(function, args, kwargs or {}, sys._getframe(1))


class _Kernels(TorchDispatchMode):
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would hold its compiler back around each kernel, which takes longer than recording it: see below."""
        return False

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._kernel = recorder.kernel

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # reading a tensor's shape is not a call of the program
            return self._kernel(op, args, kwargs or {})


# Once for all: the compiler leaves this function, and all that it calls, to Python.
set_code_exec_strategy(_Kernels.__torch_dispatch__.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))


class _Replaced:
    """An attribute replaced inside a `with` block, and afterwards exactly as it was, absent if it was absent."""

    def __init__(self, owner: Any, name: str, new: Any) -> None:
        self._owner, self._name, self._new = owner, name, new

    def __enter__(self) -> None:
        self._was_there = self._name in vars(self._owner)
        self._old = vars(self._owner).get(self._name)
        setattr(self._owner, self._name, self._new)

    def __exit__(self, *_: object) -> None:
        if self._was_there:
            setattr(self._owner, self._name, self._old)
        else:
            delattr(self._owner, self._name)


Writes = tuple[tuple[int, str], ...]  # the arguments that an operation writes into: position, name
_KNOWN: dict[int, tuple[OpOverload, str, Writes]] = {}  # by id: computing an operation's hash takes longer than this


def _traits(op: OpOverload) -> tuple[str, Writes]:
    """An operation's name without namespace and overload, and the arguments that it writes into."""
    known = _KNOWN.get(id(op))
    if known is None:
        name = op._schema.name.split("::")[-1]
        arguments = enumerate(op._schema.arguments)
        writes = tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)
        known = _KNOWN[id(op)] = op, name, writes
    return known[1], known[2]


def _transformed(*seeds: Any) -> bool:
    """Inside torch.func or vmap, whose tensors have no storage to look at."""
    functorch = torch._C._functorch
    wrapped = (functorch.is_functorch_wrapped_tensor(seed) for seed in seeds if isinstance(seed, Tensor))
    return functorch.peek_interpreter_stack() is not None or any(wrapped)


def _written(writes: Writes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation is about to write into."""
    found = (args[position] if position < len(args) else kwargs.get(name) for position, name in writes)
    return [tensor for argument in found for tensor in _tensors(argument)]


@cache
def _is_machinery(code: CodeType) -> bool:
    """Code of PyTorch or of this file: not the line a person looks for."""
    return code.co_filename.startswith(_TORCH) or code.co_filename == __file__


def _bases(written: list[Tensor]) -> list[Tensor]:
    """The tensors behind written views: autograd makes new versions of them."""
    views = [tensor._base for tensor in written if tensor._is_view()]
    return [base for base in views if base is not None]


def _same_line(one: Operation, other: Operation) -> bool:
    return (one.name, one.line, one.file, one.module) == (other.name, other.line, other.file, other.module)


def _on_stack(frame: FrameType | None, file: str) -> bool:
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame is not None


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    return getattr(function.__self__, "__name__", name) if name in ("__get__", "__set__") else name


def _tensors(argument: Any) -> list[Tensor]:
    if isinstance(argument, Tensor):
        return [argument]
    if isinstance(argument, SEQUENCES):
        return [t for item in argument for t in _tensors(item)]
    return []
