"""A snapshot beside a training step: the run is the one that nobody looked at, bit for bit, and the trace is whole."""

import pytest
import torch
from test_glass_pulse import GPT2, MODERN, Normed, fresh, plain_loss, train

import lightwell
from lightwell.errors import SpaceError
from lightwell.glass.pulse import mean_loss
from lightwell.glass.snapshot import Snapshot


@pytest.mark.parametrize(
    ("make", "loss_of"),
    [
        (lambda: fresh(GPT2), mean_loss),
        (lambda: fresh(GPT2, checkpoint_activations=True), mean_loss),
        (lambda: fresh(MODERN), mean_loss),
        (Normed, plain_loss),
    ],
    ids=["gpt2", "checkpointed", "modern", "batch norm"],
)
def test_a_run_with_snapshots_has_the_same_weights_bit_for_bit(make, loss_of):
    torch.manual_seed(0)
    alone = make()
    torch.manual_seed(0)
    watched = make()
    taken = []
    losses = train(alone, None, loss_of=loss_of)
    assert train(watched, Snapshot(lambda *pair: taken.append(pair), 4, loss_of=loss_of), loss_of=loss_of) == losses
    for (name, value), other in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert [step for step, _ in taken] == [4, 8]
    for step, t in taken:
        assert t.level == "snapshot"
        assert len(t.operations) > 20
        assert t.loss.numel == 1
        assert any(f"step {step}" in note for note in t.notes)


def test_a_snapshot_can_be_explained_and_verified():
    taken = []
    model = fresh(GPT2)
    train(model, Snapshot(lambda step, t: taken.append(t), 3), steps=3)
    (t,) = taken
    assert t.verify(whole=False).agree
    name, value = next((v.name, v) for v in t.values if v.name == "blocks.0.mlp.up.weight")
    assert name
    assert t.gradient_of(value, 0).readable


def test_compiled_training_is_said(tmp_path):
    taken = []
    train(fresh(GPT2), Snapshot(lambda step, t: taken.append(t), 1, compiled=True), steps=1)
    assert any("compiled" in note for note in taken[0].notes)
    assert "compiled" in taken[0].save(tmp_path / "x.html").read_text()


def test_memory_and_disks_that_are_full_do_not_stop_training():
    said = []

    def full(step, t):
        raise SpaceError("expected room for a page, got none.")

    def hungry(model, ids, targets):
        raise torch.OutOfMemoryError

    alone = train(fresh(GPT2), None, steps=2)
    assert train(fresh(GPT2), Snapshot(full, 1, on_trouble=said.append), steps=2) == alone
    assert train(fresh(GPT2), Snapshot(full, 2, loss_of=hungry, on_trouble=said.append), steps=2) == alone
    assert said == [
        "The snapshot of step 1 was left out: expected room for a page, got none.",
        "The snapshot of step 2 was left out: expected room for a page, got none.",
        "There is not enough memory for a snapshot of step 2; training goes on without it.",
    ]


def test_beyond_the_memory_limit_statistics_are_kept():
    taken = []
    train(fresh(GPT2), Snapshot(lambda step, t: taken.append(t), 1, memory_limit_bytes=1000), steps=1)
    assert any("memory limit" in note for note in taken[0].notes)


def test_a_run_keeps_pages_of_its_steps(tmp_path):
    text, val = tmp_path / "text.txt", tmp_path / "val.txt"
    text.write_text("The light falls into the well and the well gives it back. " * 200)
    val.write_text("Deep down there is a room, and in the room there is a lamp. " * 20)
    settings = [
        "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "tokenizer.kind=bytes",
        "train.batch_size=2", "glass.snapshot_every=2",
    ]  # fmt: skip
    lightwell.pretrain(text, val=val, out=tmp_path / "run", steps=4, device="cpu", settings=settings)
    pages = sorted((tmp_path / "run" / "snapshots").iterdir())
    assert [page.name for page in pages] == ["step-00000002.html", "step-00000004.html"]
    assert "a replay beside step 4 of training" in pages[1].read_text()
