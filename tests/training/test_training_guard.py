"""Bad numbers: noticed, named, never applied; gone back from and passed over; all of it also after a resume."""

import itertools
import math

import pytest
import torch
from training_helpers import events, metrics, moments, put_together, same, tiny, train, training_reason, weights

from lightwell.config.run import GuardSection, changed
from lightwell.store.checkpoints import read_newest
from lightwell.training import loop
from lightwell.training.guard import judge, robust_z
from lightwell.training.state import TrainState

BAD = 4  # the number of the batch that is made bad


def test_one_bad_batch_is_passed_by_and_named(tmp_path, dataset):
    config = tiny(steps=8, checkpoint={"every": 1})
    training = put_together(tmp_path / "run", config, dataset)
    bad = training.batches.batch(BAD)
    before = {}

    def hook(module, inputs, output):
        return output * math.nan if any(torch.equal(row, ids) for row in inputs[0] for ids in bad.ids) else output

    training.replicas.model.tok_emb.register_forward_hook(hook)
    training.evaluate = None  # it would see nothing of this
    original = training.optimizer.step

    def step(scale, apply):
        before[training.state.step] = weights(training), moments(training)
        original(scale, apply)

    training.optimizer.step = step
    assert training_reason(training) is None
    assert same(before[BAD][0], before[BAD + 1][0])  # nothing moved
    assert same(before[BAD][1], before[BAD + 1][1])
    assert not same(before[BAD + 1][0], before[BAD + 2][0])
    (event,) = events(tmp_path / "run", "nonfinite")
    assert event["step"] == BAD + 1
    assert event["details"]["first_bad_layer"] == "tok_emb"
    assert event["details"]["documents"] == sorted(set(bad.documents.flatten().tolist()))
    assert event["details"]["in_a_row"] == 1
    assert [step for step, _ in metrics(tmp_path / "run", "loss")["loss"]] == [1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("where", ["blocks.1.mlp", "weight", "backward"])
def test_the_first_bad_layer_is_named(tmp_path, dataset, where):
    config = tiny(steps=4, guard={"patience": 9})
    training = put_together(tmp_path / "run", config, dataset)
    model = training.replicas.model
    if where == "weight":
        with torch.no_grad():
            model.blocks[1].attn.out.weight[0, 0] = math.inf
    elif where == "backward":
        model.blocks[0].mlp.up.weight.register_hook(lambda gradient: gradient * math.nan)
    else:
        model.get_submodule(where).register_forward_hook(lambda module, inputs, output: output * math.inf * 0)
    start = weights(training)
    if where == "weight":  # such weights are not worth saving, and cannot be saved
        with pytest.raises(Exception, match="expected to save the run"):
            training_reason(training)
    else:
        training_reason(training)
    expected = {"weight": "the weight blocks.1.attn.out.weight", "backward": "the backward pass"}.get(where, where)
    assert {event["details"]["first_bad_layer"] for event in events(tmp_path / "run", "nonfinite")} == {expected}
    assert same(weights(training), start)


def test_after_patience_it_goes_back_and_passes_over(tmp_path, dataset):
    """Three bad batches in a row: back to the checkpoint before them, and on behind them."""
    config = tiny(steps=10, checkpoint={"every": 2}, guard={"patience": 3}, train={"batch_size": 6, "eval_every": 5})
    training = put_together(tmp_path / "run", config, dataset)
    seen = []
    taken = training.batches.batch

    def batch(step, *rest):
        seen.append(step)
        return taken(step, *rest)

    training.batches.batch = batch
    evaluate, evaluated = training.evaluate, []

    def counted(tokens):
        evaluated.append(training.state.step)
        return evaluate(tokens)

    training.evaluate = counted
    spoil(training, {5, 6, 7})
    assert training_reason(training) is None
    assert evaluated == [5, 5, 10], "the checkpoint of step 5 is of before its evaluation: what that found was lost"
    (skip,) = events(tmp_path / "run", "skip")
    assert (skip["details"]["at"], skip["details"]["batches"], skip["details"]["from_step"]) == (5, 3, 8)
    assert training.state.data_step == 13
    trained = [step for step, _ in itertools.groupby(seen)]
    assert trained[:5] == [0, 1, 2, 3, 4]
    assert trained[-5:] == [8, 9, 10, 11, 12]
    assert [step for step, _ in metrics(tmp_path / "run", "loss")["loss"]] == list(range(1, 11))

    # Killed after the first of the bad ones, it does the very same.
    calls = itertools.count(1)
    half = put_together(tmp_path / "half", config, dataset, stop=lambda: "told to" if next(calls) == 6 else None)
    spoil(half, {5, 6, 7})
    training_reason(half)
    assert read_newest(tmp_path / "half").state["bad_steps"] == 1
    rest = put_together(tmp_path / "half", config, dataset)
    spoil(rest, {5, 6, 7})
    training_reason(rest)
    # It had to save amid the bad ones, so it passes over what is bad from there on.
    (skip,) = events(tmp_path / "half", "skip")
    assert (skip["details"]["at"], skip["details"]["batches"]) == (6, 2)
    assert rest.state.step == 10


def test_a_weight_that_goes_bad_is_healed_by_going_back(tmp_path, dataset):
    """The same run without the accident, but passing over the same data, ends with the same weights."""
    config = tiny(steps=8, checkpoint={"every": 2}, guard={"patience": 2}, train={"batch_size": 6, "eval_every": 8})
    training = put_together(tmp_path / "run", config, dataset)
    original, done = training.optimizer.step, []

    def step(scale, apply):
        original(scale, apply)
        if training.state.step == 4 and not done:
            done.append(True)
            with torch.no_grad():
                training.replicas.model.tok_emb.weight[3, 3] = math.nan

    training.optimizer.step = step
    assert training_reason(training) is None
    (skip,) = events(tmp_path / "run", "skip")
    assert (skip["details"]["at"], skip["details"]["from_step"]) == (4, 7)
    twin = put_together(tmp_path / "twin", config, dataset)
    twin.state.decide("skip", at=4, batches=3)
    training_reason(twin)
    assert same(weights(training), weights(twin))
    assert same(moments(training), moments(twin))


def test_numbers_that_stay_bad_end_the_run_with_the_last_good_state(tmp_path, dataset):
    config = tiny(steps=40, checkpoint={"every": 2}, guard={"patience": 2})
    training = put_together(tmp_path / "run", config, dataset)
    spoil(training, range(5, 1000))
    assert training_reason(training) == "the numbers stay bad, whatever the data"
    assert len(events(tmp_path / "run", "skip")) == 5
    assert all(torch.isfinite(tensor).all() for tensor in read_newest(tmp_path / "run").model.values())


@pytest.mark.parametrize("known", [0, 1], ids=["at once", "a step later"])
def test_bad_steps_are_not_saved_though_they_are_known_late(tmp_path, dataset, monkeypatch, known):
    """As on a GPU: when the save of step 6 is due, nobody has read that its numbers were bad."""
    real = loop.take_stock
    monkeypatch.setattr(loop, "take_stock", lambda t, lag=None: real(t, lag=0 if lag is None else known))
    training = put_together(tmp_path / "run", tiny(steps=12, checkpoint={"every": 2}, guard={"patience": 1}), dataset)
    spoil(training, {5})
    assert training_reason(training) is None
    (skip,) = events(tmp_path / "run", "skip")
    assert (skip["details"]["at"], skip["details"]["batches"]) == (4, 2)
    assert training.state.step == 12


def spoil(training, data_steps):
    """Make the loss of these batches NaN, through the gradient of the first norm."""
    training.replicas.model.blocks[0].norm1.weight.register_hook(
        lambda gradient: gradient * math.nan if training.state.data_step in data_steps else gradient
    )


def test_spikes_are_events_or_bad_steps():
    usual = [3.0 + 0.01 * (n % 5) for n in range(40)]
    for policy, bad in (("event", 0), ("rewind", 1)):
        state, section = TrainState(), GuardSection(spikes=policy)
        assert [event for loss in usual for event in judge(state, section, loss, 1.0, True)] == []
        ((kind, details),) = judge(state, section, 9.0, 1.0, True)
        assert kind == "spike"
        assert details["usual"] == pytest.approx(3.02)
        assert state.bad_steps == bad
        assert judge(state, section, 3.0, 1.0, True) == []
        assert state.bad_steps == 0
    assert robust_z(5.0, [1.0, 2.0, 3.0]) == pytest.approx(3.0 / 1.4826)
    assert judge(TrainState(), GuardSection(), 9.0, 1.0, True) == []  # nothing is usual yet


def test_a_new_level_of_the_loss_becomes_usual():
    state, section = TrainState(), GuardSection(window=32)
    for loss in [3.0] * 40:
        judge(state, section, loss, 1.0, True)
    spikes = [bool(judge(state, section, 4.0, 1.0, True)) for _ in range(40)]
    assert spikes[0]
    assert not spikes[-1]


def test_spikes_that_rewind(tmp_path, dataset):
    guard = {"patience": 2, "spikes": "rewind", "window": 4, "spike_z": 50.0}
    config = tiny(steps=12, checkpoint={"every": 1}, guard=guard)
    config = changed(config, optimizer={"name": "adamw", "learning_rate": 1e-6})
    training = put_together(tmp_path / "run", config, dataset)

    def hook(module, inputs, output):
        return -30 * output if training.state.data_step in (7, 8) else output

    training.replicas.model.final_norm.register_forward_hook(hook)
    assert training_reason(training) is None
    assert len(events(tmp_path / "run", "spike")) == 2
    (skip,) = events(tmp_path / "run", "skip")
    assert (skip["details"]["at"], skip["details"]["batches"]) == (7, 2)


def test_the_state_of_the_guard_survives_a_resume(tmp_path, dataset):
    config = tiny(steps=9)
    whole = train(tmp_path / "whole", config, dataset)
    calls = itertools.count(1)
    training_reason(
        put_together(tmp_path / "run", config, dataset, stop=lambda: "told to" if next(calls) == 4 else None)
    )
    again = train(tmp_path / "run", config, dataset)
    assert again.state.recent_losses == whole.state.recent_losses
    assert len(again.state.recent_losses) == 9
