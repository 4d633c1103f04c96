"""A run as a Python object: what `lightwell.load` gives, beyond the tour of test_tiny."""

import pytest
import torch

import lightwell
from lightwell.beginning import read_request
from lightwell.errors import ConfigError, LockedError
from lightwell.files.lock import lock_folder
from lightwell.inspection import describe_runs, plan_summary
from lightwell.trained import longest_copy_from

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
