"""What the tests of the store share: a tiny training's tensors, saved, compared and damaged."""

from __future__ import annotations

from pathlib import Path

import torch

from lightwell.store.checkpoint import Checkpoint, write_checkpoint

Tensors = dict[str, torch.Tensor]


def tensors_of(step: int) -> tuple[Tensors, Tensors]:
    """Weights (two names tied) and optimizer state of a step: same for the same step, different for others."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(5, 3, generator=generator)
    model = {"tok_emb.weight": weight, "norm.weight": torch.randn(3, generator=generator), "head.weight": weight}
    return model, {"tok_emb.weight.exp_avg": torch.randn(5, 3, generator=generator), "step": torch.tensor(float(step))}


def save(run: Path, step: int, content: int | None = None) -> Path:
    """Write a checkpoint; `content` stands for another training that came to the same step."""
    content = step if content is None else content
    return write_checkpoint(
        run, step, *tensors_of(content), {"decisions": [["content", content]]}, {"tokens": 7 * step}
    )


def content_of(checkpoint: Checkpoint) -> int:
    """Which training a checkpoint is of, after every tensor in it has been compared."""
    content = checkpoint.state["decisions"][0][1]
    model, optimizer = tensors_of(content)
    for got, expected in ((checkpoint.model, model), (checkpoint.optimizer, optimizer)):
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    return content


def flip(path: Path, at: int) -> None:
    """Turn over one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
