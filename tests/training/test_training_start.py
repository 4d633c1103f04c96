"""What a run begins with: embeddings from counted pairs where they may be, chance where asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_helpers import CPU, tiny

import lightwell
from lightwell import beginning
from lightwell.beginning import weights_of
from lightwell.config.run import changed, parse, to_raw
from lightwell.data.dataset import open_dataset
from lightwell.data.prepare import prepare
from lightwell.errors import ConfigError, UserError
from lightwell.model.build import GPT
from lightwell.store.checkpoint import write_checkpoint
from lightwell.store.run_folder import create
from lightwell.training.assemble import begins_with_pairs, new_model

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT, HELD_OUT = GOLDEN / "well.txt", GOLDEN / "well-held-out.txt"
SIZES = [f"model.{key}=16" for key in ("emb_dim", "context_length")] + ["model.n_layers=1", "model.n_heads=2"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "prepared"
    prepare([TEXT], folder, tokenizer="bytes", val=[HELD_OUT])
    return open_dataset(folder)


@pytest.mark.parametrize(
    ("family", "tied", "init", "counted"),
    [
        ("modern", False, None, True),
        ("modern", True, None, False),
        ("modern", False, "random", False),
        ("gpt2", False, None, False),
        ("gpt2", False, "bigram", True),
    ],
)
def test_the_rule(dataset, family, tied, init, counted):
    config = changed(tiny(family), model={"tie_embeddings": tied}, train={"init": init})
    model_config = config.model.complete()
    assert begins_with_pairs(model_config, config) == counted
    plain, found = (new_model(model_config, config, CPU, data) for data in (None, dataset))
    for (name, one), other in zip(plain.named_parameters(), found.parameters(), strict=True):
        copies = family == "modern" and name.startswith(("blocks.0.attn.", "blocks.1.attn.")) and "norm" not in name
        changes = counted and (name in ("tok_emb.weight", "head.weight") or copies)
        assert torch.equal(one, other) != changes, name


def test_the_planner_keeps_them_apart_and_a_run_gains_by_it(tmp_path):
    losses = {}
    for init in ("bigram", "random"):
        run = lightwell.pretrain(
            TEXT, val=HELD_OUT, out=tmp_path / init, steps=3, device="cpu", settings=[*SIZES, f"train.init={init}"]
        )
        assert run.model_config.tie_embeddings is False
        losses[init] = run.metrics["loss"][0][1]
    assert losses["bigram"] < losses["random"] - 0.5


def test_a_run_that_begins_from_another_takes_its_weights(tmp_path):
    """One matrix or two, as the parent has it: runs of before did not say which in their config."""
    asked = {"steps": 2, "val": HELD_OUT, "device": "cpu"}
    tied = lightwell.pretrain(TEXT, out=tmp_path / "old", settings=[*SIZES, "model.tie_embeddings=true"], **asked)
    config = tmp_path / "old" / "config.toml"
    config.write_text(config.read_text().replace("tie_embeddings = true\n", ""))
    child = lightwell.pretrain(TEXT, out=tmp_path / "new", weights_from=tied.path, **asked)
    assert child.model_config.tie_embeddings is True
    assert child.metrics["loss"][0][1] < tied.metrics["loss"][0][1]
    with pytest.raises(UserError, match=r"train\.init beside --from"):
        lightwell.pretrain(TEXT, out=tmp_path / "no", weights_from=tied.path, settings=["train.init=random"], **asked)


def test_how_much_text_is_read_heeds_the_model_that_a_run_begins_from(tmp_path, monkeypatch):
    asked = {"steps": 2, "val": HELD_OUT, "device": "cpu"}
    parent = lightwell.pretrain(TEXT, out=tmp_path / "old", settings=SIZES, **asked)
    seen, prepare_text = [], beginning.open_or_prepare

    def spy(text, run, config, *others):
        seen.append(config.model.emb_dim)
        return prepare_text(text, run, config, *others)

    monkeypatch.setattr(beginning, "open_or_prepare", spy)
    lightwell.pretrain(TEXT, out=tmp_path / "new", weights_from=parent.path, **asked)
    assert seen == [16]


def test_beside_another_runs_weights_another_shape_is_refused_and_dropout_is_not(tmp_path):
    asked = {"steps": 2, "val": HELD_OUT, "device": "cpu"}
    parent = lightwell.pretrain(TEXT, out=tmp_path / "old", settings=[*SIZES, "model.context_length=128"], **asked)
    begun = {"weights_from": parent.path, **asked}
    with pytest.raises(UserError, match=r"got n_layers = 5"):
        lightwell.pretrain(TEXT, out=tmp_path / "no", settings=["model.n_layers=5"], **begun)
    with pytest.raises(UserError, match=r"family = gpt2"):
        lightwell.pretrain(TEXT, out=tmp_path / "no", preset="gpt2-nano", **begun)
    child = lightwell.pretrain(
        TEXT, out=tmp_path / "new", settings=["model.drop_rate=0.2", "model.context_length=8"], **begun
    )
    assert (child.model_config.drop_rate, child.model_config.context_length) == (0.2, 8)
    assert child.model_config.emb_dim == 16
    assert child.outcome()["predicted"]["bits_per_byte"] is None, "the law knows models that begin anew"
    assert parent.outcome()["predicted"]["bits_per_byte"] is not None


def test_rows_for_tokens_that_no_tokenizer_has_are_left_behind(tmp_path, dataset):
    """Other projects round vocabularies up; a run that goes on from such a model has its tokenizer's size."""
    V = dataset.tokenizer.vocab_size
    padded = changed(tiny("modern"), model={"vocab_size": V + 7, "tie_embeddings": False})
    model = GPT(padded.model.complete())
    create(tmp_path / "imported", to_raw(padded), {"import": {}}, dataset.tokenizer)
    write_checkpoint(tmp_path / "imported", 0, model.state_dict(), {}, {})
    parent = lightwell.load(tmp_path / "imported", device="cpu")
    child = lightwell.pretrain(
        TEXT, val=HELD_OUT, out=tmp_path / "new", weights_from=parent.path, steps=1, device="cpu"
    )
    assert child.model_config.vocab_size == V
    weights = weights_of(parent)
    assert weights["tok_emb.weight"].shape[0] == weights["head.weight"].shape[0] == V
    assert torch.equal(weights["tok_emb.weight"], model.tok_emb.weight[:V])


def test_the_beginning_does_not_depend_on_threads(dataset):
    config, found = tiny("modern"), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(new_model(config.model.complete(), config, CPU, dataset).state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_asked_for_where_it_cannot_be():
    with pytest.raises(ConfigError, match=r"train\.init.*model\.tie_embeddings is true"):
        parse({"train": {"init": "bigram"}, "model": {"tie_embeddings": True}})
