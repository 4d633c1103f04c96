"""A run as a Python object: what `lightwell.load` gives, beyond the tour of test_tiny."""

import shutil
import sqlite3
from contextlib import closing

import pytest
import torch

import lightwell
from lightwell.beginning import read_request
from lightwell.errors import ConfigError, LockedError, UserError
from lightwell.files.lock import lock_folder
from lightwell.inspection import describe_runs, find_runs, plan_summary
from lightwell.show.units import size
from lightwell.trained import longest_copy_from

TINY = ["model.context_length=128", "model.emb_dim=32", "model.n_heads=2", "model.n_layers=1", "tokenizer.kind=bytes"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "notes.txt").write_text("".join(f"Der Brunnen {n} ist tief — größer als {n}.\n\n" for n in range(6000)))
    settings = [*TINY, "train.batch_size=4", "train.sample_tokens=8"]
    return lightwell.pretrain(folder / "notes.txt", steps=3, out=folder / "run", settings=settings)


def test_what_was_predicted_is_not_held_against_a_run_that_went_on_for_longer(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    assert run.outcome()["predicted"]["bits_per_byte"] is not None
    assert lightwell.resume(copy, extend_steps=2).outcome()["predicted"]["bits_per_byte"] is None


def test_opening_a_run_draws_no_numbers(run):
    before = torch.random.get_rng_state()
    lightwell.load(run.path).model.requires_grad_(False)
    assert torch.equal(torch.random.get_rng_state(), before)


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


def test_of_a_long_text_pieces_are_searched_and_no_copy_reaches_over_two(run, monkeypatch):
    monkeypatch.setattr("lightwell.evaluation.copies.SEARCHED", 4000)
    assert longest_copy_from(run, "xx ist tief yy") == " ist tief "
    passage = run.tokenizer.decode(run.dataset().train.read(0, 2000).tolist())
    assert 100 < len(longest_copy_from(run, passage)) <= 200, "twenty pieces of 200 bytes"


def test_a_plan_looks_at_the_text_that_is_named(tmp_path):
    text = tmp_path / "numbers.txt"
    text.write_text("".join(f"{n} and {n * n}\n" for n in range(30_000)))
    found = plan_summary(text, minutes=0.2)
    assert 0 <= found["steps"] * found["tokens_per_step"] - found["tokens"] < found["tokens_per_step"]
    assert found["seconds"] <= 12
    assert not any("No text was named" in reason for reason in found["reasons"])
    assert any("No text was named" in reason for reason in plan_summary(minutes=0.2, preset="nano")["reasons"])


def test_a_plan_refuses_what_training_would_and_says_that_a_vocabulary_is_smaller(run, tmp_path):
    (tmp_path / "val.txt").write_text("Der Brunnen ist tief.\n" * 400)
    with pytest.raises(UserError, match="expected text beside --val, got prepared data"):
        plan_summary([run.dataset().path], val=[tmp_path / "val.txt"], steps=3)
    (tmp_path / "few.txt").write_text("".join(f"Der Brunnen {n} ist tief.\n" for n in range(9000)))
    settings = [*TINY[:-1], "model.vocab_size=5000"]
    reasons = plan_summary([tmp_path / "few.txt"], steps=3, settings=settings)["reasons"]
    (said,) = [reason for reason in reasons if reason.startswith("A vocabulary of ")]
    assert "not 5,000" in said


def test_several_prompts_are_gone_on_from_at_once(run):
    prompts = ["Der Brunnen", "Der"]
    generation = run.write(prompts, max_new_tokens=8, seed=3)
    assert generation.finish() == [run.generate(prompt, max_new_tokens=8, seed=3) for prompt in prompts]
    assert all(0 < len(ids) <= 8 for ids in generation.ids)
    with pytest.raises(UserError, match="expected a list of at least one prompt"):
        run.write([])


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(lightwell.UserError, match="expected a run"):
        lightwell.load(tmp_path)


def test_a_budget_of_a_flag_replaces_the_files_and_is_joined_by_settings(tmp_path):
    (tmp_path / "mine.toml").write_text("[budget]\nsteps = 7\nmost_tokens = 9\n")
    budget = read_request(config=tmp_path / "mine.toml", minutes=10, settings=["budget.most_tokens=500"]).raw["budget"]
    assert budget == {"minutes": 10, "most_tokens": 500}
    assert read_request(config=tmp_path / "mine.toml", minutes=10).raw["budget"] == {"minutes": 10}
    (tmp_path / "mine.toml").write_text("[budget]\nsteeps = 7\n")
    with pytest.raises(ConfigError, match="steeps"):
        read_request(config=tmp_path / "mine.toml", minutes=10)
    with pytest.raises(lightwell.UserError, match="one budget"):
        read_request(minutes=10, settings=["budget.steps=500"])


def test_a_second_process_leaves_the_config_of_a_run_that_is_just_beginning(run, tmp_path):
    """Between its config and its first checkpoint a run looks like one that came to nothing."""
    beginning = tmp_path / "beginning"
    beginning.mkdir()
    for name in ("config.toml", "tokenizer.json"):
        (beginning / name).write_bytes((run.path / name).read_bytes())
    with lock_folder(beginning):
        assert describe_runs([beginning])[0]["state"] == "running"
        with pytest.raises(LockedError):
            lightwell.pretrain(run.path.parent / "notes.txt", steps=3, out=beginning, settings=TINY)
        assert (beginning / "config.toml").exists()
    assert describe_runs([beginning])[0]["state"] == "broken"
    again = lightwell.pretrain(run.path.parent / "notes.txt", steps=3, out=beginning, settings=TINY)
    assert again.step == 3


def test_a_folder_of_runs_stands_for_its_runs(run, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(run.path, tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert [row["name"] for row in describe_runs([tmp_path])] == ["one", "two"]
    assert find_runs([tmp_path / "two", tmp_path]) == [tmp_path / name for name in ("two", "one", "two")]
    with pytest.raises(lightwell.UserError, match="expected a run folder"):
        find_runs([tmp_path / "notes"])


def test_a_clock_that_is_set_back_does_not_change_a_runs_state(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    with closing(sqlite3.connect(copy / "run.sqlite")) as database, database:
        database.execute("UPDATE events SET time = 0 WHERE kind = 'end'")
    assert describe_runs([copy])[0]["state"] == "done"


def test_a_damaged_event_does_not_hide_a_run(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    with closing(sqlite3.connect(copy / "run.sqlite")) as database, database:
        database.execute("INSERT INTO events VALUES (0, 0, 0, 'steps', 'not json')")
        database.execute("INSERT INTO events VALUES (1000, 0, 0, 'end', '[3]')")
    assert [row["step"] for row in describe_runs([tmp_path])] == [run.step]


def test_another_kind_of_tokenizer_than_the_one_there_is_is_refused(run, tmp_path):
    asked = {"steps": 1, "out": tmp_path / "other", "settings": ["tokenizer.kind=chars"]}
    for text, parent in ((run.dataset().path, None), (run.path.parent / "notes.txt", run.path)):
        with pytest.raises(lightwell.UserError, match=r"tokenizer\.kind = bytes"):
            lightwell.pretrain(text, weights_from=parent, **asked)
        assert not (tmp_path / "other" / "config.toml").exists()


def test_what_is_trained_on_and_what_is_held_out_is_said(run, tmp_path):
    told = []
    lightwell.pretrain(run.dataset().path, steps=1, out=tmp_path / "new", settings=TINY, say=told.append)
    splits = run.dataset().manifest["splits"]
    (sentence,) = [line for line in told if line.startswith("To train on: ")]
    for split in splits.values():
        assert size(split["bytes"]) in sentence
    assert "a vocabulary of 257." in sentence
