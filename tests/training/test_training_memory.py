"""When a GPU's memory runs out, the step is made again in smaller pieces. Here a CPU says that it has run out."""

import pytest
import torch
from training_helpers import events, put_together, same, tiny, train, training_reason, weights

from lightwell.errors import StoppedEarly
from lightwell.store.checkpoints import read_newest
from lightwell.training import assemble
from lightwell.training.memory import MICRO_BATCH

CUDA = torch.OutOfMemoryError("CUDA out of memory.")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")


def with_room_for(training, rows, error=CUDA):
    """A training on a device that holds so many sequences at once; the error comes late, with gradients half made."""
    forward = training.replicas.forward
    sizes = []

    def limited(ids, targets):
        loss_sum, n = forward(ids, targets)
        if len(ids) > rows:
            loss_sum.backward()
            raise error
        sizes.append(len(ids))
        return loss_sum, n

    training.replicas.forward = limited
    return training, sizes


@pytest.mark.parametrize("error", [CUDA, MPS], ids=["cuda", "mps"])
def test_the_micro_batch_is_halved_until_it_fits_and_the_run_goes_on(tmp_path, dataset, error):
    config = tiny(steps=4, train={"batch_size": 8})
    training, sizes = with_room_for(put_together(tmp_path / "run", config, dataset), 3, error)
    assert training_reason(training) is None
    assert training.state.step == 4
    assert set(sizes) == {2}
    assert [d["size"] for d in training.state.decisions if d["kind"] == MICRO_BATCH] == [4, 2]
    assert [event["details"]["size"] for event in events(tmp_path / "run", MICRO_BATCH)] == [4, 2]
    small = train(tmp_path / "small", tiny(steps=4, train={"batch_size": 8, "micro_batch_size": 2}), dataset)
    assert same(weights(training), weights(small)), "nothing is left of the steps that failed"


def test_a_resumed_run_begins_with_the_size_that_fitted(tmp_path, dataset):
    config = tiny(steps=6, train={"batch_size": 8})
    first, _ = with_room_for(put_together(tmp_path / "run", config, dataset, stop=lambda: "enough"), 3)
    assert training_reason(first) == "enough"
    again, sizes = with_room_for(put_together(tmp_path / "run", config, dataset), 3)
    assert again.micro_batch_size == 2
    training_reason(again)
    assert set(sizes) == {2}
    assert len([d for d in again.state.decisions if d["kind"] == MICRO_BATCH]) == 2


def test_a_model_of_which_no_sequence_fits_is_given_up(tmp_path, dataset):
    training, _ = with_room_for(put_together(tmp_path / "run", tiny(steps=4), dataset), 0)
    with pytest.raises(StoppedEarly, match="does not fit"):
        training_reason(training)


def test_an_update_that_does_not_fit_is_not_made_twice(tmp_path, dataset):
    """AdamW's part is done when Muon's runs out of memory: to go on from there would be another run."""
    config = tiny(steps=6, checkpoint={"every": 2})
    training = put_together(tmp_path / "run", config, dataset)
    update = training.optimizer.muon.step

    def limited(*rest):
        if training.state.step == 3:
            raise CUDA
        update(*rest)

    training.optimizer.muon.step = limited
    with pytest.raises(StoppedEarly, match="the update of the weights does not fit"):
        training_reason(training)
    assert read_newest(tmp_path / "run").step == 3
    again = train(tmp_path / "run", config, dataset)
    assert same(weights(again), weights(train(tmp_path / "whole", config, dataset)))


def test_a_step_that_takes_long_is_timed_by_its_first_micro_batch(tmp_path, dataset, monkeypatch):
    config = tiny(steps=4, train={"batch_size": 8, "micro_batch_size": 2})
    training, sizes = with_room_for(put_together(tmp_path / "run", config, dataset), 8)
    batch = training.batches.batch(0)
    measured = (training.replicas, training.optimizer, batch, 2, training.device)
    assert assemble.time_a_step(*measured) > 0
    assert sizes == 12 * [2]
    monkeypatch.setattr(assemble, "LONG", 0.0)
    assert assemble.time_a_step(*measured) > 0
    assert sizes[12:] == [2]
