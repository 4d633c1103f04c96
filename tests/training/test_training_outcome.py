"""At the end a run hands over what was best on held-out text, and says what became of the prediction."""

import pytest
from training_helpers import events, held_out, put_together, same, tiny, train, weights

from lightwell.config.run import changed
from lightwell.store.checkpoint import checkpoint_path, load_model_only
from lightwell.training.loop import run
from lightwell.training.outcome import OUTCOME_TOKENS, hand_over

LOSSES = {2: 3.0, 4: 2.0, 6: 4.0, 8: 5.0}


def overfitted(path, dataset):
    config = tiny(steps=8, train={"batch_size": 6, "eval_every": 2}, checkpoint={"keep": 1, "every": 2})
    training = put_together(path, config, dataset)
    training.evaluate = lambda n: held_out(LOSSES[training.state.step])
    run(training)
    return training


def test_of_a_text_learned_by_heart_an_earlier_checkpoint_is_handed_over(tmp_path, dataset):
    training = overfitted(tmp_path / "run", dataset)
    outcome = hand_over(training, 1000)
    assert outcome["handed_over"] == 4
    assert same(weights(training), load_model_only(checkpoint_path(tmp_path / "run", 4)))
    assert "predicted" not in outcome
    training.record.close()


def test_a_damaged_best_checkpoint_is_said_and_the_last_one_taken(tmp_path, dataset):
    training = overfitted(tmp_path / "run", dataset)
    (checkpoint_path(tmp_path / "run", 4) / "model.safetensors").write_bytes(b"")
    last = weights(training)
    assert hand_over(training, 1000)["handed_over"] == 8
    assert same(weights(training), last)
    training.record.close()
    assert events(tmp_path / "run", "checkpoint_broken")


def test_the_prediction_is_compared_with_the_outcome(tmp_path, dataset):
    training = train(tmp_path / "run", tiny(steps=4), dataset)
    measured = training.evaluate(10**6).bits_per_byte
    outcome = hand_over(training, 10**6, predicted=2.0)
    assert outcome["handed_over"] == 4
    assert outcome["bits_per_byte"] == pytest.approx(measured)
    assert outcome["off"] == pytest.approx(measured / 2 - 1)


def test_late_in_its_minutes_a_run_measures_what_there_is_time_for(tmp_path, dataset, monkeypatch):
    config = tiny(steps=4, train={"batch_size": 6, "eval_every": 2})
    training = train(tmp_path / "run", config, dataset)
    asked: list[int] = []
    training.evaluate = lambda n: asked.append(n) or held_out(1.0)
    training.eval_tokens, training.eval_seconds, training.closing_seconds = 20_000, 2.0, 3.0
    hand_over(training, 10**6)
    training.config = changed(config, budget={"steps": None, "minutes": 1})
    for elapsed in (0, 47, 55, 90):
        monkeypatch.setattr(training.pace, "elapsed", lambda elapsed=elapsed: elapsed)
        hand_over(training, 300_000)
    training.config = changed(config, budget={"steps": None, "minutes": 10})
    monkeypatch.setattr(training.pace, "elapsed", lambda: 700)
    hand_over(training, 300_000)
    assert asked == [10**6, 300_000, 100_000, 20_000, OUTCOME_TOKENS, 60_000], "a hundredth of ten minutes is 6 s"


def test_a_failing_measurement_loses_nothing(tmp_path, dataset):
    training = overfitted(tmp_path / "run", dataset)

    def fails(n):
        raise ValueError("no")

    training.evaluate = fails
    assert hand_over(training, 1000) is None
    training.record.close()
    assert "ValueError: no" in events(tmp_path / "run", "evaluation_failed")[0]["details"]["error"]
