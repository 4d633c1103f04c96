"""A run as a Python object: what `lightwell.load` gives, beyond the tour of test_tiny."""

import pytest
import torch

import lightwell
from lightwell.api import longest_copy_from

TINY = ["model.context_length=32", "model.emb_dim=32", "model.n_heads=2", "model.n_layers=1", "tokenizer.kind=bytes"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "notes.txt").write_text("".join(f"Der Brunnen {n} ist tief — größer als {n}.\n\n" for n in range(6000)))
    settings = [*TINY, "train.batch_size=4", "train.sample_tokens=8"]
    return lightwell.pretrain(folder / "notes.txt", steps=3, out=folder / "run", settings=settings)


def test_streaming_leaves_the_callers_precision_alone(run):
    """Between two pieces the caller's own products are computed as the caller wants them."""
    other = lightwell.load(run.path, dtype="bfloat16")
    pieces = other.stream("Der", max_new_tokens=3)
    next(pieces)
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    pieces.close()


def test_the_longest_copy_is_told_in_characters(run):
    assert longest_copy_from(run, "xx größer als 1 yy") == " größer als 1"
    assert longest_copy_from(run, "") == ""


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(lightwell.UserError, match="expected a run"):
        lightwell.load(tmp_path)
