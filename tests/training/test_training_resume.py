"""Step n is a function of (config, seed, n, decisions): stopped and gone on with, a run ends with the same bits."""

import itertools
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from training_helpers import (
    events,
    held_out,
    metrics,
    moments,
    put_together,
    same,
    tiny,
    train,
    training_reason,
    weights,
)

from lightwell.config.run import changed
from lightwell.errors import StoppedEarly, UserError
from lightwell.runtime.observer import Observer
from lightwell.store import background
from lightwell.store.checkpoints import list_checkpoints, read_newest
from lightwell.training import loop, pace, saver

CURVES = ("loss", "gradient_norm", "lr_scale", "heldout.loss", "tokens")


def stop_at(step):
    """A `stop` that gives a reason after so many calls: one is made after each step."""
    calls = itertools.count(1)
    return lambda: "told to" if next(calls) >= step else None


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_twenty_steps_are_ten_and_ten(tmp_path, dataset, family, optimizer):
    """With dropout, accumulation over unequal pieces, in the middle of an epoch."""
    config = tiny(
        family, optimizer, model={"drop_rate": 0.2}, train={"batch_size": 6, "micro_batch_size": 3, "eval_every": 4}
    )
    whole = train(tmp_path / "whole", config, dataset)
    assert 10 % whole.batches.steps_per_epoch > 0.1
    first = put_together(tmp_path / "halves", config, dataset, stop=stop_at(10))
    assert training_reason(first) == "told to"
    assert first.state.step == 10
    assert not same(weights(first), weights(whole))
    second = train(tmp_path / "halves", config, dataset)
    assert second.state.step == 20
    assert same(weights(second), weights(whole))
    assert same(moments(second), moments(whole))
    assert metrics(tmp_path / "halves", *CURVES) == metrics(tmp_path / "whole", *CURVES)


def test_dropout_does_something(tmp_path, dataset):
    losses = [
        metrics(train(tmp_path / str(rate), tiny(model={"drop_rate": rate}, steps=3), dataset).saver.run, "loss")
        for rate in (0.0, 0.5)
    ]
    assert losses[0] != losses[1]


class Memory(Observer):
    def __init__(self):
        self.samples, self.evaluations = [], []

    def sample(self, step, model):
        self.samples.append((step, model.tok_emb.weight.sum().item()))

    def after_evaluation(self, step, heldout):
        self.evaluations.append((step, heldout["heldout.loss"]))


def test_work_that_was_owed_is_done_first(tmp_path, dataset):
    """Stopped right at a step with an evaluation: the checkpoint says so, and the resumed run begins with it."""
    config = tiny(train={"batch_size": 6, "eval_every": 5, "sample_every": 10})
    undisturbed = Memory()
    train(tmp_path / "whole", config, dataset, observers=[undisturbed])
    assert [step for step, _ in undisturbed.evaluations] == [5, 10, 15, 20]
    assert [step for step, _ in undisturbed.samples] == [10, 20]
    before, after = Memory(), Memory()
    training_reason(put_together(tmp_path / "run", config, dataset, observers=[before], stop=stop_at(10)))
    assert read_newest(tmp_path / "run").state["owed"] == ["evaluation", "sample"]
    train(tmp_path / "run", config, dataset, observers=[after])
    assert before.evaluations + after.evaluations == undisturbed.evaluations
    assert before.samples + after.samples == undisturbed.samples
    assert read_newest(tmp_path / "run").state["owed"] == []


def test_a_finished_run_has_nothing_left_to_do(tmp_path, dataset):
    config = tiny(steps=4)
    first = train(tmp_path / "run", config, dataset)
    again = Memory()
    second = train(tmp_path / "run", config, dataset, observers=[again])
    assert again.evaluations == again.samples == []
    assert same(weights(first), weights(second))


def test_the_best_checkpoint_outlives_rotation_and_resume(tmp_path, dataset):
    config = tiny(steps=8, train={"batch_size": 6, "eval_every": 2}, checkpoint={"every": 1, "keep": 1})
    losses = {2: 3.0, 4: 4.0, 6: 5.0, 8: 6.0}

    def rising(training):
        training.evaluate = lambda n: held_out(losses[training.state.step])
        return training

    training_reason(rising(put_together(tmp_path / "run", config, dataset, stop=stop_at(5))))
    training = rising(put_together(tmp_path / "run", config, dataset))
    assert training.state.best_step == 2
    training_reason(training)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000008"]


def test_decisions_are_events_and_cadence_is_kept(tmp_path, dataset):
    config = tiny(steps=6)
    train(tmp_path / "run", config, dataset)
    (steps,), (cadence,) = events(tmp_path / "run", "steps"), events(tmp_path / "run", "cadence")
    assert steps["details"]["steps"] == 6
    state = read_newest(tmp_path / "run").state
    assert [decision["kind"] for decision in state["decisions"]] == ["steps", "cadence"]
    assert cadence["details"] == state["decisions"][1]
    train(tmp_path / "run", config, dataset)  # nothing is decided twice
    assert len(events(tmp_path / "run", "steps")) == 1


def test_a_run_that_ends_with_an_error_leaves_no_thread_and_a_good_checkpoint(tmp_path, dataset):
    class Broken(Observer):
        def after_step(self, report):
            if report.step == 3:
                raise KeyError("a bug in an observer")

    training = put_together(tmp_path / "run", tiny(checkpoint={"every": 1}), dataset, observers=[Broken()])
    with pytest.raises(KeyError):
        training_reason(training)
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint-writer"]
    assert read_newest(tmp_path / "run").step == 2


def test_a_save_that_fails_is_retried_and_three_in_a_row_end_the_run(tmp_path, dataset, monkeypatch):
    real, attempts_that_fail = background.write_checkpoint, [2]

    def write(run, step, *rest):
        if step >= 4 and attempts_that_fail[0] > 0:
            attempts_that_fail[0] -= 1
            raise OSError("the disk is full")
        return real(run, step, *rest)

    monkeypatch.setattr(background, "write_checkpoint", write)
    monkeypatch.setattr(saver, "BackgroundWriter", partial(background.BackgroundWriter, pauses=(0.01, 0.01)))
    config = tiny(steps=8, checkpoint={"every": 1})
    training = put_together(tmp_path / "some", config, dataset)
    assert training_reason(training) is None
    failed = events(tmp_path / "some", "save_failed")
    assert len(failed) == 2
    assert "the disk is full" in failed[0]["details"]["error"]
    assert read_newest(tmp_path / "some").step == 8

    attempts_that_fail[0] = 99
    training = put_together(tmp_path / "all", config, dataset)
    with pytest.raises(StoppedEarly, match="last good checkpoint is step 3"):
        training_reason(training)
    assert len(events(tmp_path / "all", "save_failed")) == 3


def test_where_saving_has_failed_for_good_the_main_process_still_gathers_with_the_others(tmp_path, dataset):
    training = put_together(tmp_path / "run", tiny(steps=4), dataset)
    gathered = []

    def gather(name):
        for _ in range(2):
            gathered.append(name)
            yield name, torch.zeros(1)

    class Failed:
        best_step = None

        def submit(self, *_):
            raise StoppedEarly("the disk is gone")

    training.saver.replicas = SimpleNamespace(weights=lambda: gather("weights"))
    training.saver.optimizer = SimpleNamespace(state_tensors=lambda: gather("moments"))
    training.saver._writer = Failed()
    training.saver.save(training.state)
    assert gathered == ["weights"] * 2 + ["moments"] * 2


def test_an_evaluation_that_fails_is_an_event(tmp_path, dataset):
    training = put_together(tmp_path / "run", tiny(steps=4), dataset)

    def fail(max_tokens):
        raise RuntimeError("out of memory")

    training.evaluate = fail
    assert training_reason(training) is None
    assert "out of memory" in events(tmp_path / "run", "evaluation_failed")[0]["details"]["error"]
    assert read_newest(tmp_path / "run").step == 4


def test_numbers_that_are_read_a_step_later_are_of_their_own_step(tmp_path, dataset, monkeypatch):
    """As on a GPU, where reading the newest would wait for it."""
    real = loop.take_stock
    monkeypatch.setattr(loop, "take_stock", lambda t, lag=None: real(t, lag=0 if lag is None else 1))
    train(tmp_path / "run", tiny(steps=4), dataset)
    assert metrics(tmp_path / "run", "tokens")["tokens"] == [(step, 96.0 * step) for step in (1, 2, 3, 4)]


def test_an_early_stop_is_a_decision(tmp_path, dataset):
    config = tiny(steps=40, train={"batch_size": 6, "eval_every": 1})
    training = put_together(tmp_path / "run", config, dataset)
    training.evaluate = lambda n: held_out(float(training.state.step))
    assert training_reason(training) == "overfitting"
    assert training.state.step == 5  # the best was the first; four worse ones followed
    for _ in range(2):
        assert train(tmp_path / "run", config, dataset).state.step == 5
    assert len(events(tmp_path / "run", "early_stop")) == 1
    patient = put_together(tmp_path / "off", tiny(steps=8, train={"batch_size": 6, "early_stop": False}), dataset)
    patient.evaluate = lambda n: held_out(float(patient.state.step))
    assert training_reason(patient) is None


def test_a_finished_run_is_extended_and_an_unfinished_one_is_not(tmp_path, dataset):
    config = tiny(steps=20, train={"batch_size": 6, "early_stop": False})
    training_reason(put_together(tmp_path / "run", config, dataset, stop=stop_at(5)))
    with pytest.raises(UserError, match="expected a finished run to extend, got one at step 5"):
        put_together(tmp_path / "run", config, dataset, extend_steps=10)
    train(tmp_path / "run", config, dataset)
    training = put_together(tmp_path / "run", config, dataset, extend_steps=200, stop=stop_at(7))
    training_reason(training)
    training = train(tmp_path / "run", config, dataset, extend_steps=200)  # asked again: it goes on with those
    assert training.state.step == 220
    rates = dict(metrics(tmp_path / "run", "lr_scale")["lr_scale"])
    assert rates[20] == pytest.approx(1 / 13)  # the end of the first decay, over 12 steps, is not repeated
    assert [rates[21], rates[22], rates[23]] == pytest.approx([1 / 3, 2 / 3, 1])  # up again over 1% of the new steps
    assert rates[100] == 1
    assert rates[101] == pytest.approx(120 / 121)
    assert rates[220] == pytest.approx(1 / 121)
    (extended,) = events(tmp_path / "run", "extended")
    assert extended["details"]["steps"] == 220


class OneClock(Observer):
    """A clock that goes on by as much at each step, and stands still otherwise."""

    def __init__(self, step_seconds):
        self.now, self.step_seconds = 1000.0, step_seconds

    def perf_counter(self):
        return self.now

    def after_step(self, report):
        self.now += self.step_seconds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
def test_minutes_and_a_compiled_model_go_on_as_well(tmp_path, dataset, monkeypatch):
    """Steps turn out slower than planned: the end is moved before the stop, and the resumed run keeps to it."""
    config = tiny("modern", "muon", model={"drop_rate": 0.2}, runtime={"compile": True})
    config = changed(config, budget={"steps": None, "minutes": 0.5}, optimizer={"learning_rate": 0.005, "beta1": 0.9})

    def sitting(name, **options):
        clock = OneClock(1.25)
        monkeypatch.setattr(pace, "time", clock)
        return put_together(
            tmp_path / name, config, dataset, observers=[clock], began=clock.now, step_seconds=1.0, **options
        )

    whole = sitting("whole")
    assert training_reason(whole) is None
    first = sitting("halves", stop=stop_at(12))
    assert training_reason(first) == "told to"
    second = sitting("halves")
    assert training_reason(second) is None
    assert 12 < second.state.step < second.state.decisions[0]["steps"]
    assert second.state.step == whole.state.step
    assert whole.state.decisions == second.state.decisions
    assert same(weights(second), weights(whole))
    assert same(moments(second), moments(whole))
