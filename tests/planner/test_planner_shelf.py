"""What a preset's keys cost: against counting by hand."""

import pytest

from lightwell.config.presets import preset
from lightwell.planner.shelf import explain_keys


@pytest.fixture(scope="module")
def rows():
    return {row["key"]: row for row in explain_keys(preset("gpt2-124m"))}


def test_the_vocabulary_costs_its_embedding(rows):
    assert rows["model.vocab_size"]["cost"].startswith("38.6 M of 124 M parameters")  # 50,256 rows of 768
    assert "parameters x1.31" in rows["model.vocab_size"]["doubled"]


def test_layers_cost_all_but_one(rows):
    assert rows["model.n_layers"]["cost"].startswith("77.9 M of 124 M parameters")  # 11 of 12 blocks of 7.1 million


def test_what_costs_nothing_says_so(rows):
    assert rows["optimizer.learning_rate"]["cost"].startswith("nothing")
    assert "parameters" not in rows["model.n_heads"]["cost"]
    assert rows["model.drop_rate"]["doubled"] == "changes none of them"


def test_every_key_has_a_sentence(rows):
    assert all(row["meaning"].endswith(".") for row in rows.values())
