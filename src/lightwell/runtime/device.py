"""Where a run computes and in which precision: one object that the training step asks, whatever the device.

Weights, optimizer state and reductions stay in float32. Matrix products run in `dtype`: bfloat16 on GPUs that have it
and on CPUs with instructions for it (Intel's AMX, AVX-512 BF16), where it is two to several times as fast, float32
elsewhere.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lightwell.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Device:
    """A torch device and the dtype of matrix products on it."""

    torch_device: torch.device
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        return self.torch_device.type

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which a forward pass runs: mixed precision, or nothing at all for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=self.dtype)

    def synchronise(self) -> None:
        """Wait until the device has done what it was given; for measuring time."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.kind == "mps":
            torch.mps.synchronize()

    def empty_cache(self) -> None:
        """Give back the device's memory that is kept for later."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        elif self.kind == "mps":
            torch.mps.empty_cache()

    def describe(self) -> str:
        """What it is, for people: "cpu (2 threads), float32"."""
        if self.kind == "cuda":
            name = torch.cuda.get_device_name(self.torch_device)
        else:
            name = f"{torch.get_num_threads()} threads" if self.kind == "cpu" else platform.processor()
        return f"{self.torch_device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def on_its_way(numbers: Sequence[torch.Tensor]) -> Callable[[], list[float]]:
    """Begin to copy 0-D tensors of one device to the host. What is returned gives the numbers, and waits for them only:
    not for what a GPU was given since."""
    together = torch.stack([number.double() if number.device.type == "cpu" else number.float() for number in numbers])
    if together.device.type != "cuda":
        return together.tolist
    here, done = together.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record(torch.cuda.current_stream(together.device))

    def read() -> list[float]:
        done.synchronize()
        return here.tolist()

    return read


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory was too small: CUDA says so by the error's type, MPS only in words."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def choose_device(name: str = "auto", dtype: str = "auto") -> Device:
    """The device called `name` ("auto": CUDA, else MPS, else CPU) with a dtype. Raises UserError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"expected a device such as cpu, cuda, cuda:1 or mps, got {name!r}.", "auto takes the best."
        ) from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"expected a device that this machine has, got {name!r}.", f"Here: {there}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"expected one of {torch.cuda.device_count()} GPUs, got {name!r}.")
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"expected auto, {' or '.join(DTYPES)} as the dtype of products, got {dtype!r}.")
    return Device(device, DTYPES[dtype] if dtype != "auto" else fast_dtype(device))


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32 in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 that PyTorch may use: AMX or AVX-512 BF16."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # PyTorch has no public ones
    return any(supported() for name in names if (supported := getattr(torch.cpu, name, None)))
