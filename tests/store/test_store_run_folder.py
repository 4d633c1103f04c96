"""A run folder: what makes one, what is refused, which versions are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from store_crash_model import kill_at
from store_helpers import save

from lightwell.errors import DamagedError, RunError
from lightwell.store import run_folder
from lightwell.store.run_folder import create, is_run, open_run, write_config
from lightwell.tokenizer.simple import BytesTokenizer

CONFIG = {"run": {"name": "notes", "seed": 3}, "train": {"prompts": ['a\nb "c" [[[ ü'], "clip": 1.0, "every": None}}
REQUEST = {"minutes": 5.0, "text": ["notes/"], "val": None}


def make(run: Path, dataset: Path | None = None) -> run_folder.RunFolder:
    return create(run, CONFIG, REQUEST, BytesTokenizer(), dataset)


def test_what_is_created_is_opened(run: Path, tmp_path: Path) -> None:
    made = make(run)
    save(run, 0)
    opened = open_run(run)
    assert opened == made
    assert opened.config == {"run": {"name": "notes", "seed": 3}, "train": {"prompts": ['a\nb "c" [[[ ü'], "clip": 1.0}}
    assert opened.request == {"minutes": 5.0, "text": ["notes/"]}
    assert opened.format_version == 1
    assert opened.tokenizer.hash == BytesTokenizer().hash
    assert opened.dataset_path is None
    (run / "dataset").mkdir()
    assert opened.dataset_path == run / "dataset"
    assert "format = 1\n" in (run / "config.toml").read_text()


@pytest.mark.parametrize("where", ["elsewhere", "run/dataset"])
def test_the_dataset_is_the_runs_own_or_another(run: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / where).mkdir(parents=True)
    make(run, tmp_path / where)
    assert open_run(run, need_checkpoint=False).dataset_path == tmp_path / where
    run.rename(tmp_path / "moved")  # its own data moves with it
    moved = {"elsewhere": "elsewhere", "run/dataset": "moved/dataset"}[where]
    assert open_run(tmp_path / "moved", need_checkpoint=False).dataset_path == tmp_path / moved


def test_each_missing_part_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="which does not exist"):
        open_run(run)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="which is a file"):
        open_run(tmp_path / "file")
    make(run)
    assert is_run(run)
    with pytest.raises(RunError, match="which has none yet"):
        open_run(run)
    save(run, 1)
    for name in ("tokenizer.json", "config.toml"):
        (run / name).rename(run / "hidden")
        with pytest.raises(RunError, match=f"which has no {name}"):
            open_run(run)
        (run / "hidden").rename(run / name)
    open_run(run)


def test_a_run_is_not_made_over_something_else(run: Path) -> None:
    run.mkdir()
    (run / "thesis.txt").touch()
    with pytest.raises(RunError, match=r"with thesis\.txt"):
        make(run)
    (run / "thesis.txt").unlink()
    make(run)
    with pytest.raises(RunError, match="which holds one"):
        make(run)
    with pytest.raises(RunError, match="got a file"):
        make(run / "config.toml")


def test_killed_while_it_begins_it_begins_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    k = 0
    while kill_at(monkeypatch, k, lambda: make(run)):
        assert not is_run(run) or open_run(run, need_checkpoint=False).config["run"]["name"] == "notes"
        if not is_run(run):
            make(run)
        for path in (run / "config.toml", run / "tokenizer.json"):
            path.unlink()
        k += 1
    assert k > 8


@pytest.mark.parametrize("written", ["2", '"1"', "-1", "[]"])
def test_an_unknown_format_is_refused_by_name(run: Path, written: str) -> None:
    make(run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("format = 1", f"format = {written}"))
    with pytest.raises(RunError, match="expected a run of format 1 or older, got format") as caught:
        open_run(run, need_checkpoint=False)
    assert "another version" in caught.value.hint
    (run / "config.toml").write_text(text.replace("format = 1", ""))
    with pytest.raises(DamagedError, match="got no format in it"):
        open_run(run, need_checkpoint=False)


def test_an_older_format_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as an imagined version 0 wrote it: `width` was the name of `emb_dim`, and nothing was asked."""
    run.mkdir()
    BytesTokenizer().save(run / "tokenizer.json")
    (run / "config.toml").write_text("format = 0\n[model]\nwidth = 64\n")
    save(run, 5)
    with pytest.raises(RunError, match="got format 0"):
        open_run(run)
    monkeypatch.setitem(run_folder.UPGRADES, 0, lambda old: {"model": {"emb_dim": old["model"]["width"]}})
    opened = open_run(run)
    assert (opened.format_version, opened.config, opened.request) == (0, {"model": {"emb_dim": 64}}, {})
    monkeypatch.setitem(run_folder.UPGRADES, -1, lambda old: {"model": {"width": old["w"]}})
    (run / "config.toml").write_text("format = -1\nw = 32\n")
    assert open_run(run).config == {"model": {"emb_dim": 32}}


def test_a_config_can_be_changed(run: Path) -> None:
    folder = make(run)
    write_config(run, folder.config | {"extended": {"steps": 100}}, folder.request, folder.named_dataset)
    assert open_run(run, need_checkpoint=False).config["extended"] == {"steps": 100}


@pytest.mark.parametrize(
    "text",
    [
        b"not toml",
        b"\xff\xfe",
        b"format = 1\nx = " + b"[" * 100_000,
        b"format = 1\nx = " + b"[" * 80 + b"]" * 80,
        b"format = 1\n" + b".".join([b"a"] * 100) + b" = 1",
        b"# " + b"x" * (2 << 20),
        b"format = 1\nrequest = 3",
        b"format = 1\ndataset = 3",
    ],
)
def test_hostile_configs_are_refused(run: Path, text: bytes) -> None:
    make(run)
    (run / "config.toml").write_bytes(text)
    with pytest.raises(DamagedError, match=r"config\.toml"):
        open_run(run, need_checkpoint=False)


@pytest.mark.parametrize("name", ["config.toml", "tokenizer.json", "checkpoints", "dataset"])
def test_links_that_lead_out_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    make(run)
    save(run, 1)
    (run / "dataset").mkdir()
    (run / name).rename(tmp_path / name)
    os.symlink(tmp_path / name, run / name)
    with pytest.raises(DamagedError, match="leads out of it"):
        use(open_run(run))


def use(folder: run_folder.RunFolder) -> None:
    assert folder.tokenizer.vocab_size
    assert folder.dataset_path
