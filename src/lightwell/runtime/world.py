"""The processes of a run. Alone, a process is rank 0 of 1 and every operation gives back what it was given.

Code that asks `world` needs no `if distributed`: one path for one process and for many (torch.distributed, started by
torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK). Tensors travel by collective operations; everything else, as
JSON, through the key-value store by which the processes found each other, so nothing is ever pickled.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from lightwell.errors import LightwellError, StoppedEarly
from lightwell.runtime.watch import Watch

HANG_SECONDS = 600.0  # a collective operation that takes longer hangs; LIGHTWELL_HANG_SECONDS in the environment
AS_LONG_AS_IT_TAKES = timedelta(days=30)  # rank 0 may prepare a large text; if it dies, the launcher ends the others
T = TypeVar("T")


class World:
    """`rank` of `size` processes, of which `local_size` are on this machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_size: int = 1, store: dist.Store | None = None) -> None:
        self.rank, self.size, self.local_size = rank, size, local_size
        self.watch: Watch | None = None
        self._store = store
        self._said = 0  # values that rank 0 has told so far

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes: rank 0 alone does."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_main(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's numbers on every process, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any process."""
        return bool(self.sum(torch.tensor([int(flag)])).item()) if self.size > 1 else flag

    def agree(self, value: T) -> T:
        """Rank 0's value, on every process. It must be JSON."""
        return self.on_main(lambda: value)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 while the others wait, as long as it takes; its result, which must be JSON, on all.

        An error there ends all: rank 0 raises it, the others leave without a word.
        """
        if self._store is None:
            return work()
        self._said += 1
        key = f"said/{self._said}"
        if not self.is_main:
            self._store.wait([key], AS_LONG_AS_IT_TAKES)
            said = json.loads(self._store.get(key))
            if "exit_code" in said:
                raise SystemExit(said["exit_code"])
            return said["value"]
        try:
            value = work()
        except BaseException as error:
            self._store.set(key, json.dumps({"exit_code": exit_code(error)}))
            raise
        self._store.set(key, json.dumps({"value": value}))
        return value

    def gather(self, value: object) -> list[Any]:
        """Every process's value (JSON), by rank, on all of them."""
        if self._store is None:
            return [value]
        self._said += 1
        keys = [f"said/{self._said}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], json.dumps(value))
        self._store.wait(keys, AS_LONG_AS_IT_TAKES)
        return [json.loads(self._store.get(key)) for key in keys]

    def at(self, step: int, phase: str) -> None:
        """Note where this process is; if all come to a standstill, these notes tell who is behind. Costs nothing."""
        if self.watch is not None:
            self.watch.at(step, phase)


@contextmanager
def join_world(device_kind: str = "cpu") -> Iterator[World]:
    """The World that torchrun made, or a process alone. Leaves the group at the end.

    A run that stops early says so on rank 0; the other processes end without a word.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device_kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    seconds = float(os.environ.get("LIGHTWELL_HANG_SECONDS", HANG_SECONDS))
    store, rank, _ = next(dist.rendezvous("env://"))
    # gloo beside nccl: flags travel as CPU tensors, gradients as CUDA ones
    backend = "cpu:gloo,cuda:nccl" if device_kind == "cuda" else "gloo"
    patience = timedelta(seconds=2 * seconds + 60)  # the watch ends a standstill, and says more about it
    # The launcher's store outlives its workers: in another attempt the addresses of the last one are still in it.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    of_group, prefix = dist.PrefixStore(f"torch/{attempt}", store), f"lightwell/{attempt}"
    dist.init_process_group(backend, store=of_group, rank=rank, world_size=size, timeout=patience)
    ours = dist.PrefixStore(prefix, store)
    world = World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), ours)
    world.watch = Watch(dist.PrefixStore(prefix, store.clone()), rank, size, seconds)
    try:
        yield world
    except StoppedEarly:
        if world.is_main:
            raise
        raise SystemExit(0) from None
    finally:
        world.watch.close()
        dist.destroy_process_group()


def exit_code(error: BaseException) -> int:
    """How the other processes end when rank 0 raises this: a launcher restarts what fails, so a stop is no failure."""
    if isinstance(error, StoppedEarly):
        return 0
    return error.exit_code if isinstance(error, LightwellError) else 1


def leave(code: int) -> NoReturn:
    """End one of many processes, once all is saved and said, without taking the interpreter apart.

    Threads of PyTorch that carry tensors between processes live as long as its caches do, and one that lets go of a
    tensor while the interpreter is being taken apart aborts the process ("terminate called without an active
    exception"): the launcher would take a finished run for a failed one.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where nobody reads any more
        os._exit(code)
