"""Text to a dataset and back: nothing lost, nothing held out trained on, the same bytes each time, damage noticed."""

import errno
import json
import os

import numpy as np
import pytest
from data_texts import prose

from lightwell.data import prepare as preparing
from lightwell.data.dataset import diff_datasets, is_dataset, open_dataset
from lightwell.data.plan import make_plan
from lightwell.data.prepare import prepare
from lightwell.data.shards import ShardWriter, TokenStream, id_dtype
from lightwell.data.sources import collect
from lightwell.errors import DamagedError, DataError, SpaceError, UserError
from lightwell.tokenizer.simple import BytesTokenizer


def texts_of(stream, tokenizer):
    """The documents of a stream as bytes."""
    ids = np.asarray(stream.read(0, len(stream)))
    starts = stream.document_starts.astype(int).tolist()
    assert (ids[starts] == tokenizer.separator_id).all()
    assert (ids == tokenizer.separator_id).sum() == len(starts)
    return [tokenizer.decode_bytes(ids[a:b].tolist()) for a, b in zip(starts, [*starts[1:], len(ids)])]


def write_documents(folder, n=40, size=5_000):
    folder.mkdir()
    for number in range(n):
        (folder / f"{number:03}.txt").write_bytes(prose(size, seed=number))
    return folder


def test_documents_come_out_as_they_went_in(tmp_path):
    folder = write_documents(tmp_path / "text")
    made = prepare([folder], tmp_path / "data", tokenizer="bytes")
    given = sorted(path.read_bytes() for path in folder.iterdir())
    train, val = (texts_of(stream, made.tokenizer) for stream in (made.train, made.val))
    assert sorted(train + val) == given
    assert made.train.n_bytes == sum(map(len, train))
    assert made.val.n_bytes == sum(map(len, val)) >= 64_000
    assert made.text("val") == b"".join(val)
    rows = list(made.documents())
    assert [row["split"] for row in rows].count("train") == len(train) == made.manifest["splits"]["train"]["documents"]
    assert sum(row["tokens"] + 1 for row in rows if row["split"] == "train") == len(made.train)


def test_one_novel_is_divided_and_nothing_lost(tmp_path):
    novel = prose(400_000)
    (tmp_path / "novel.txt").write_bytes(novel)
    made = prepare([tmp_path / "novel.txt"], tmp_path / "data", tokenizer="bytes")
    rows = sorted((row for row in made.documents()), key=lambda row: row["start"])
    pieces = {split: iter(texts_of(getattr(made, split), made.tokenizer)) for split in ("train", "val")}
    assert b"".join(next(pieces[row["split"]]) for row in rows) == novel
    assert {row["split"] for row in rows} == {"train", "val"}


def test_duplicates_are_kept_once_and_held_out_text_is_not_trained_on(tmp_path):
    folder = write_documents(tmp_path / "text")
    novel = prose(300_000, seed=99)
    (folder / "novel.txt").write_bytes(novel)
    (folder / "novel again.txt").write_bytes(novel)
    (folder / "novel with preface.txt").write_bytes(b"A preface.\n\n" + novel)
    made = prepare([folder], tmp_path / "data", tokenizer="bytes")
    train = b"\0".join(texts_of(made.train, made.tokenizer))
    shared = sum(text in train for text in texts_of(made.val, made.tokenizer))
    assert shared <= 2  # those that meet the preface or where the two cuts have not met yet
    reasons = made.manifest["left_out"]
    assert reasons["the same text is there already"] == 1
    assert reasons["it is held out"] >= 1
    listed = [row for row in made.documents() if row.get("left_out") == "the same text is there already"]
    assert [os.path.basename(row["source"]) for row in listed] == ["novel.txt"]


def test_val_that_is_named(tmp_path):
    folder = write_documents(tmp_path / "text", n=5, size=300)
    val = folder / "003.txt"
    made = prepare([folder], tmp_path / "data", tokenizer="bytes", val=[val])  # far less than two stretches
    assert texts_of(made.val, made.tokenizer) == [val.read_bytes()]
    assert len(texts_of(made.train, made.tokenizer)) == 4
    assert made.manifest["held_out"] == {"chosen": False, "sources": [str(val)]}
    with pytest.raises(DataError, match="expected text to train on beside what is held out"):
        prepare([val], tmp_path / "none", tokenizer="bytes", val=[val])
    with pytest.raises(DataError, match="does not exist"):
        prepare([folder], tmp_path / "none", val=[tmp_path / "nowhere"])


def test_too_little_text(tmp_path):
    (tmp_path / "tiny.txt").write_bytes(prose(20_000))
    with pytest.raises(DataError, match="expected at least 128 kB"):
        prepare([tmp_path / "tiny.txt"], tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("tokenizer", ["bpe", "chars"])
def test_the_vocabulary_sees_the_training_part_only(tmp_path, tokenizer):
    folder = write_documents(tmp_path / "text", n=30, size=1000)
    held = "Zyzzyva Ωμέγα " * 500
    (tmp_path / "val.txt").write_text(held)
    made = prepare([folder], tmp_path / "data", tokenizer=tokenizer, vocab_size=400, val=[tmp_path / "val.txt"])
    learned = b" ".join(made.tokenizer.token_bytes(i) for i in range(256, made.tokenizer.vocab_size))
    assert "Ä".encode() in learned
    assert b"Zy" not in learned
    assert "Ω".encode() not in learned
    assert texts_of(made.val, made.tokenizer) == [held.encode()]


def test_the_same_text_gives_the_same_bytes(tmp_path):
    folder = write_documents(tmp_path / "text")
    a, b = (prepare([folder], tmp_path / name, tokenizer="bpe", vocab_size=300) for name in "ab")
    assert a.fingerprint == b.fingerprint
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_limit_is_kept_and_said(tmp_path):
    folder = write_documents(tmp_path / "text", n=60)
    made = prepare([folder], tmp_path / "data", tokenizer="bytes", limit_bytes=200_000, seed=3)
    assert made.train.n_bytes + made.val.n_bytes <= 200_000
    assert made.manifest["limit"]["bytes"] == 200_000
    assert made.manifest["limit"]["seed"] == 3
    assert "chosen by the seed 3" in made.describe()
    other = prepare([folder], tmp_path / "other", tokenizer="bytes", limit_bytes=200_000, seed=4)
    assert other.fingerprint != made.fingerprint


def test_a_tokenizer_to_use_as_it_is_and_unknown_ones(tmp_path):
    folder = write_documents(tmp_path / "text")
    made = prepare([folder], tmp_path / "data", tokenizer=BytesTokenizer())
    assert made.tokenizer.hash == BytesTokenizer().hash
    with pytest.raises(UserError, match="expected bpe, bytes or chars as the tokenizer, got 'words'"):
        prepare([folder], tmp_path / "other", tokenizer="words")


def test_progress_reaches_its_end(tmp_path):
    seen = {}
    folder = write_documents(tmp_path / "text")
    prepare(
        [folder],
        tmp_path / "data",
        vocab_size=300,
        progress=lambda done, total, what: seen.update({what: (done, total)}),
    )
    assert set(seen) == {"reading", "learning the vocabulary", "encoding"}
    assert all(done == total for done, total in seen.values())


def test_existing_folder_and_full_disk(tmp_path, monkeypatch):
    folder = write_documents(tmp_path / "text")
    with pytest.raises(DataError, match="which exists"):
        prepare([folder], folder, tokenizer="bytes")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(SpaceError):
        prepare([folder], tmp_path / "data", tokenizer="bytes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_the_disk_fills_up_while_writing(tmp_path, monkeypatch):
    folder = write_documents(tmp_path / "text")

    def full(self, ids):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "_write", full)
    with pytest.raises(SpaceError, match="got a full disk"):
        prepare([folder], tmp_path / "data", tokenizer="bytes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_text_that_changes_while_it_is_read(tmp_path):
    folder = write_documents(tmp_path / "text")

    def meddle(done, total, what):
        if what == "learning the vocabulary":
            (folder / "007.txt").write_text("something else")

    with pytest.raises(DataError, match=r"007\.txt to stay as it is"):
        prepare([folder], tmp_path / "data", tokenizer="bytes", progress=meddle)
    assert not (tmp_path / "data").exists()


def test_open_finds_damage(tmp_path):
    folder = write_documents(tmp_path / "text")
    made = prepare([folder], tmp_path / "data", tokenizer="bytes")
    assert open_dataset(made.path, verify=True).fingerprint == made.fingerprint
    shard = made.path / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    open_dataset(made.path)
    with pytest.raises(DamagedError, match=r"train-00000\.bin"):
        open_dataset(made.path, verify=True)
    shard.write_bytes(data[:-2])
    with pytest.raises(DamagedError, match=r"train-00000\.bin"):
        open_dataset(made.path)
    shard.unlink()
    with pytest.raises(DamagedError, match=r"train-00000\.bin"):
        open_dataset(made.path)


def test_open_refuses_what_is_not_a_dataset(tmp_path):
    with pytest.raises(DataError, match="expected a prepared dataset"):
        open_dataset(tmp_path)
    assert not is_dataset(tmp_path)
    with pytest.raises(DataError, match="expected a prepared dataset"):
        open_dataset(tmp_path / "nowhere")


def test_another_tokenizer_in_the_folder_is_noticed(tmp_path):
    from lightwell.tokenizer.simple import CharTokenizer

    made = prepare([write_documents(tmp_path / "text")], tmp_path / "data", tokenizer="bytes")
    CharTokenizer("").save(made.path)
    size = (made.path / "tokenizer.json").stat().st_size
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["files"]["tokenizer.json"]["bytes"] != size
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        open_dataset(made.path)
    with pytest.raises(DamagedError, match="expected the tokenizer"):
        _ = made.__class__(made.path, made.manifest).tokenizer


def test_diff(tmp_path):
    folder = write_documents(tmp_path / "text")
    a = prepare([folder], tmp_path / "a", tokenizer="bytes")
    (folder / "000.txt").unlink()
    (folder / "new.txt").write_bytes(prose(5_000, seed=1000))
    b = prepare([folder], tmp_path / "b", tokenizer="bytes")
    same, found = diff_datasets(a, a), diff_datasets(a, b)
    assert same == {"equal": True, "changes": [], "only_before": [], "only_after": [], "moved": []}
    assert not found["equal"]
    assert [os.path.basename(row["source"]) for row in found["only_before"]] == ["000.txt"]
    assert [os.path.basename(row["source"]) for row in found["only_after"]] == ["new.txt"]
    assert [change["key"] for change in found["changes"]] == ["splits", "languages"]


@pytest.mark.parametrize("shard_tokens", [1, 2, 7, 64, 1000])
def test_shards_of_any_size_are_one_stream(tmp_path, shard_tokens):
    documents = [np.arange(n, dtype=np.uint32) + n for n in (5, 1, 20, 3, 64, 1, 1)]
    with ShardWriter(tmp_path, "train", id_dtype(300), shard_tokens) as writer:
        for document in documents:
            writer.add(document)
    stream = TokenStream.open(tmp_path, "train", writer.shards, id_dtype(300), 0)
    whole = np.concatenate(documents)
    assert len(stream) == writer.tokens == len(whole)
    assert writer.shards == -(-len(whole) // shard_tokens)
    assert stream.document_starts.dtype == np.uint64
    assert stream.document_starts.tolist() == np.cumsum([0, *map(len, documents[:-1])]).tolist()
    for start in range(len(whole) + 2):
        for stop in range(start, len(whole) + 3, 7):
            assert stream.read(start, stop).tolist() == whole[start:stop].tolist()


def test_bytes_on_disk_are_little_endian(tmp_path):
    assert id_dtype(65_536).str == "<u2"
    assert id_dtype(65_537).str == "<u4"
    with ShardWriter(tmp_path, "val", id_dtype(65_537)) as writer:
        writer.add(np.array([1, 65_536]))
    assert (tmp_path / "val-00000.bin").read_bytes() == bytes([1, 0, 0, 0, 0, 0, 1, 0])
    assert (tmp_path / "val-00000.idx").read_bytes() == bytes(8)


def test_of_a_long_text_the_tokenizer_sees_a_sample_of_what_is_trained_on(tmp_path, monkeypatch):
    """However small a share that is: hashes choose it, as they choose what is held out."""
    monkeypatch.setattr(preparing, "SAMPLE_BYTES", 30_000)
    plan = make_plan(collect([write_documents(tmp_path / "text", n=200)]), None, lambda *_: None)
    sample = list(preparing._training_sample(plan))
    assert plan.bytes["val"] > 1.5 * 30_000
    assert 15_000 < sum(len(text.encode()) for text in sample) < 60_000


def test_a_held_out_part_without_text_is_refused(tmp_path):
    (tmp_path / "val.jsonl").write_text('{"text": ""}\n')
    folder = write_documents(tmp_path / "text")
    with pytest.raises(DataError, match="held-out part"):
        prepare([folder], tmp_path / "data", tokenizer="bytes", val=[tmp_path / "val.jsonl"])
