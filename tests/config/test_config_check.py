"""Configs report every problem at once, and suggest what was meant."""

import pytest

from lightwell.beginning import read_request
from lightwell.config.gpt import GPT_CONFIG_124M, GPTConfig, ModernConfig
from lightwell.config.load import merge, parse_settings, read_toml
from lightwell.config.presets import PRESETS, preset
from lightwell.config.run import changed, parse, problems_of_run, to_raw
from lightwell.errors import ConfigError, UserError


def test_four_problems_come_together():
    with pytest.raises(ConfigError) as caught:
        GPTConfig(context_length=64, emb_dim=768, n_heads=5, n_layers=-1, drop_rate=1.5, n_haeds=12)
    keys = [key for key, _ in caught.value.problems]
    assert sorted(keys) == ["drop_rate", "n_haeds", "n_heads", "n_layers"]
    said = dict(caught.value.problems)
    assert "n_heads" in said["n_haeds"]
    assert "divisor of emb_dim = 768" in said["n_heads"]
    assert "-1" in said["n_layers"]
    assert "1.5" in said["drop_rate"]


def test_the_same_four_in_a_runs_config():
    model = {"family": "gpt2", "emb_dim": 768, "n_heads": 5, "n_layers": -1, "drop_rate": 1.5, "n_haeds": 12}
    assert len(problems_of_run({"model": model})) == 4
    assert len(problems_of_run({"model": model, "tran": {}, "train": {"batch_size": 0}})) == 6


def test_the_dictionary_of_gpt2_builds():
    config = GPTConfig(**GPT_CONFIG_124M)
    assert (config.mlp_dim, config.head_dim, config.tie_embeddings) == (3072, 64, True)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"n_heads": "4"}, "whole number"),
        ({"n_heads": True}, "whole number"),
        ({"drop_rate": float("nan")}, "number"),
        ({"tie_embeddings": 1}, "true or false"),
    ],
)
def test_nothing_is_converted_silently(raw, word):
    sizes = {"context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    with pytest.raises(ConfigError, match=word):
        GPTConfig(**(sizes | raw))


def test_modern_checks_heads():
    sizes = {"context_length": 8, "emb_dim": 12, "n_layers": 1}
    with pytest.raises(ConfigError, match="n_kv_heads"):
        ModernConfig(**sizes, n_heads=4, n_kv_heads=3)
    with pytest.raises(ConfigError, match="even"):
        ModernConfig(**sizes, n_heads=4)
    assert ModernConfig(**sizes, n_heads=5, head_dim=8).size_per_head == 8


def test_every_preset_parses_and_survives_its_file(tmp_path):
    import tomli_w

    assert len(PRESETS) == 14
    for name in PRESETS:
        config = parse(preset(name))
        config.model.complete()
        (tmp_path / "p.toml").write_text(tomli_w.dumps(to_raw(config)), encoding="utf-8")
        assert parse(read_toml(tmp_path / "p.toml")) == config


def test_the_textbook_preset_is_the_dictionary():
    model = parse(preset("gpt2-124m")).model.complete()
    assert {key: getattr(model, key) for key in GPT_CONFIG_124M} == GPT_CONFIG_124M


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="gpt2-124m"):
        preset("gpt2-124")


def test_settings_are_toml_values_or_words():
    raw = parse_settings(["train.batch_size=32", "run.name=mine", "train.prompts=['a', 'b']", "schedule.decay = 0.5"])
    expected = {"train": {"batch_size": 32, "prompts": ["a", "b"]}, "run": {"name": "mine"}, "schedule": {"decay": 0.5}}
    assert raw == expected


@pytest.mark.parametrize("setting", ["batch_size=3", "train.batch_size", ".batch_size=3", "=", ""])
def test_a_malformed_setting_is_said(setting):
    with pytest.raises(ConfigError):
        parse_settings([setting])


def test_misspelled_sections_and_wrong_values_are_told_together():
    with pytest.raises(ConfigError) as told:
        read_request(settings=["trian.batch_size=3", "train.clip=-1", "optimizer.nam='muon'"])
    assert all(word in str(told.value) for word in ("did you mean train?", "train.clip", "did you mean name?"))


def test_later_layers_win_key_by_key():
    merged = merge({"train": {"clip": 1.0, "batch_size": 4}}, {"train": {"batch_size": 8}}, {"run": {"seed": 1}})
    assert merged == {"train": {"clip": 1.0, "batch_size": 8}, "run": {"seed": 1}}


def test_two_budgets_are_one_too_many():
    assert [key for key, _ in problems_of_run({"budget": {"steps": 3, "minutes": 1.0}})] == ["budget.minutes"]


def test_changed_checks_again():
    config = parse({})
    assert changed(config, train={"batch_size": 8}).train.batch_size == 8
    with pytest.raises(ConfigError):
        changed(config, train={"batch_size": 0})


def test_keys_of_the_other_family_are_refused():
    assert problems_of_run({"model": {"family": "gpt2", "n_kv_heads": 2}})[0][0] == "model.n_kv_heads"


def test_a_config_that_is_not_toml(tmp_path):
    (tmp_path / "c.toml").write_text("a = = 1", encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        read_toml(tmp_path / "c.toml")
    with pytest.raises(UserError, match="nothing"):
        read_toml(tmp_path / "absent.toml")
