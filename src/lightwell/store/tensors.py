"""Named tensors in a file: the safetensors format, written and read piece by piece.

A safetensors file is a length (8 bytes), a JSON header (name -> type, shape, place) and the tensors' bytes in a row.
There is nothing in it to execute. We write and read it here, rather than through the library, for three reasons: each
operation on the disk goes through `files.ops`, so that tests can stop it anywhere; the hash is computed while the
bytes pass by, so that what was verified is what was loaded; and each tensor gets memory of its own, aligned as the
allocator aligns everything. (The library hands out views of one block, at addresses that no allocator would choose;
the same kernel may then add up in another order, and a resumed run would differ in the last bit.)
Source: the safetensors format description (huggingface/safetensors README, "Format").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightwell.errors import DamagedError
from lightwell.files import ops
from lightwell.files.hashing import PIECE
from lightwell.files.limits import safetensors_header

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_TIED = "tied."  # metadata key "tied.head.weight" -> "tok_emb.weight": one tensor under two names is written once


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write a new safetensors file, unsynced. Returns its (bytes, SHA-256).

    Tensors that share memory are written once, and share memory again when read. Order: widest elements first, then
    by name, so that every tensor starts at a multiple of its element's size.
    """
    tied = tied_names(tensors)
    own = {name: tensor.detach() for name, tensor in tensors.items() if name not in tied}
    own = dict(sorted(own.items(), key=lambda item: (-item[1].element_size(), item[0])))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **{_TIED + name: first for name, first in tied.items()}}}
    end = 0
    for name, tensor in own.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of 8
    digest = hashlib.sha256()
    fd = ops.create(path)
    try:
        for data in (memoryview(len(text).to_bytes(8, "little") + text), *(map(_bytes_of, own.values()))):
            for start in range(0, len(data), PIECE):
                piece = data[start : start + PIECE]
                digest.update(piece)
                ops.write(fd, piece)
    finally:
        ops.close(fd)
    return 8 + len(text) + end, digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file into new CPU tensors. Returns them with the file's SHA-256.

    Raises DamagedError if it is not a well-formed file. What its bytes should be is the caller's to compare.
    """
    header, start = safetensors_header(path)
    metadata = header.pop("__metadata__")
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        digest.update(file.read(start))
        for name, entry in header.items():
            tensors[name] = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
            data = _bytes_of(tensors[name])
            while len(data):
                n = file.readinto(data[:PIECE])
                if not n:
                    raise DamagedError(f"expected {path} to stay as it is while it is read, got one cut short.")
                digest.update(data[:n])
                data = data[n:]
    for name in (key for key in metadata if key.startswith(_TIED)):
        if metadata[name] not in tensors:
            raise DamagedError(f"expected the tensor {metadata[name]!r} in {path}, got none.")
        tensors[name.removeprefix(_TIED)] = tensors[metadata[name]]
    return tensors, digest.hexdigest()


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: the earlier name of the very same tensor}, for tensors that appear more than once."""
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if first.setdefault(same, name) != name:
            tied[name] = first[same]
    return tied


def n_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors' elements need, tied ones counted once."""
    tied = tied_names(tensors)
    return sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name not in tied)


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's memory as bytes; a copy only if it lies elsewhere or in pieces."""
    return memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
