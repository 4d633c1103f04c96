"""Files and folders to documents: what is read, what is skipped and why, and what is an error."""

import json
import os
import sys
from pathlib import Path

import pytest

from lightwell.data.sources import Sources, collect, limit, standard_library
from lightwell.errors import DataError


def write(folder, **files):
    """{"a__b.txt": content} becomes folder/a/b.txt."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def names(found: Sources, folder: Path):
    return [file.path.relative_to(folder).as_posix() for file in found.files]


def texts(found: Sources):
    return [document.text.decode() for document in found.documents()]


def test_folder_in_sorted_order_with_reasons_for_what_is_skipped(tmp_path):
    write(
        tmp_path,
        **{
            "b.txt": "bee",
            "a.md": "# a",
            "sub__z.py": "z = 1",
            "sub__a": "no suffix, but text",
            "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0",
            "old.dat": "Blätter".encode("latin-1"),
            "paper.pdf": b"%PDF-1.4 whatever",
            "empty.txt": "",
            "blank.txt": "  \n",
            ".hidden.txt": "h",
            ".git__config": "g",
            "node_modules__m.js": "m",
            "data__documents.jsonl": "{}",
            "data__train-00000.bin": b"\0\0",
            "runs__x-1__config.toml": "[run]",
            "runs__x-1__checkpoints__one.txt": "not for reading",
            "env__pyvenv.cfg": "home = /usr",
            "env__lib.py": "lib",
        },
    )
    write(tmp_path / "__pycache__", **{"x.py": "x"})
    found = collect([tmp_path])
    assert names(found, tmp_path) == ["a.md", "b.txt", "sub/a", "sub/z.py"]
    assert texts(found) == ["# a", "bee", "no suffix, but text", "z = 1"]
    assert [document.language for document in found.documents()] == ["markdown", "text", "text", "python"]
    reasons = {Path(path).name: reason for path, reason in found.skipped}
    assert reasons["picture.png"] == reasons["paper.pdf"] == "a binary file"
    assert reasons["old.dat"] == "neither UTF-8 nor a known kind of text"
    assert reasons["empty.txt"] == "an empty file"
    assert reasons["blank.txt"] == "a file of blanks"
    assert reasons[".hidden.txt"] == reasons[".git"] == "hidden"
    assert (
        reasons["node_modules"]
        == reasons["env"]
        == reasons["data"]
        == reasons["x-1"]
        == reasons["__pycache__"]
        == "made by a tool"
    )


def test_text_is_kept_as_it_is_but_for_the_byte_order_mark(tmp_path):
    write(tmp_path, **{"a.txt": b"\xef\xbb\xbfone\r\ntwo\r", "b.txt": "drei Äpfel 🍎\0\n"[:12] + "!"})
    assert texts(collect([tmp_path])) == ["one\r\ntwo\r", "drei Äpfel 🍎!"]


def test_symlink_loops_and_files_named_twice(tmp_path):
    write(tmp_path, **{"a__one.txt": "1", "a__b__two.txt": "2"})
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    found = collect([tmp_path, tmp_path / "a" / "one.txt"])
    assert sorted(texts(found)) == ["1", "2"]
    assert {Path(path).name for path, _ in found.skipped} == {"broken", "self"}


def test_a_very_deep_folder(tmp_path):
    deep = [write(tmp_path, **{"a.txt": "a"})]
    while len(deep) < 1100 and len(str(deep[-1])) < 3000:  # beyond Python's own recursion limit
        deep.append(deep[-1] / "d")
        deep[-1].mkdir()
    try:
        assert texts(collect([tmp_path])) == ["a"]
    finally:
        for folder in reversed(deep[1:]):  # others would remove them by recursion
            folder.rmdir()


def test_names_that_are_not_utf8(tmp_path):
    if sys.platform == "darwin":
        pytest.skip("macOS refuses such names")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))).write_text("odd")
    (document,) = collect([tmp_path]).documents()
    assert document.text == b"odd"
    assert json.loads(json.dumps(document.source)).endswith("\ufffd.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "got an empty file"),
        ("blank.txt", b" \n\t\n", "got a file of blanks"),
        ("mark.txt", b"\xef\xbb\xbf", "got a file of blanks"),
        ("binary.bin", b"MZ\0\0\x01", "got a binary file"),
        ("binary.py", b"MZ\0\0\x01", "got a binary file"),
        ("wide.txt", "text".encode("utf-16"), "got UTF-16"),
        ("odd.dat", b"caf\xe9 and more", "neither UTF-8"),
    ],
)
def test_named_files_that_are_not_text(tmp_path, name, content, message):
    write(tmp_path, **{name: content})
    with pytest.raises(DataError, match=message):
        collect([tmp_path / name])


@pytest.mark.parametrize("how", ["named", "in a folder"])
def test_text_in_another_encoding_names_file_and_offset(tmp_path, how):
    write(tmp_path, **{"latin.txt": b"\xef\xbb\xbfcaf\xe9s", "good.txt": "good"})
    with pytest.raises(DataError, match=r"expected UTF-8 in .*latin\.txt, got byte 0xE9 at offset 6") as error:
        list(collect([tmp_path / "latin.txt" if how == "named" else tmp_path]).documents())
    assert "iconv" in error.value.hint


def test_encoding_error_far_into_a_file(tmp_path):
    write(tmp_path, **{"long.txt": b"a" * 1_000_000 + b"\xff" + b"b" * 10})
    with pytest.raises(DataError, match="0xFF at offset 1000000"):
        list(collect([tmp_path]).documents())


def test_a_cut_character_at_the_end_is_an_error_too(tmp_path):
    write(tmp_path, **{"cut.txt": "é".encode()[:1]})
    with pytest.raises(DataError, match="0xC3 at offset 0"):
        list(collect([tmp_path]).documents())


def test_missing_and_empty(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="does not exist"):
        collect([write(tmp_path / "x", **{"a.txt": "a"}) / "a.txt" / "b"])
    with pytest.raises(DataError, match="expected a path"):
        collect(["a\0b"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="got an empty folder"):
        collect([tmp_path / "nothing"])
    with pytest.raises(DataError, match=r"2 skipped \(a binary file\); 1 skipped \(hidden\)"):
        collect([write(tmp_path / "none", **{"a.bin": b"\0", "b.bin": b"\0", ".c": "c"})])
    with pytest.raises(DataError, match="expected text in no path"):
        collect([])


def test_a_pipe_is_an_error_when_named_and_skipped_in_a_folder(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="which is neither"):
        collect([tmp_path / "pipe"])
    found = collect([write(tmp_path, **{"a.txt": "a"})])
    assert [reason for _, reason in found.skipped] == ["not a regular file"]


def test_no_permission(tmp_path, monkeypatch):
    write(tmp_path, **{"a.txt": "a", "closed.txt": "c"})
    real = open

    def closed(path, *rest, **more):
        if str(path).endswith("closed.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr("builtins.open", closed)  # root, who runs tests in containers, may read anything
    with pytest.raises(DataError, match=r"expected to read .*closed\.txt, got no permission"):
        collect([tmp_path / "closed.txt"])
    found = collect([tmp_path])
    assert texts(found) == ["a"]
    assert found.skipped == [(str(tmp_path / "closed.txt"), "not readable: Permission denied")]


def test_a_file_that_goes_away(tmp_path):
    found = collect([write(tmp_path, **{"a.txt": "a"})])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match="does not exist"):
        texts(found)


def test_json_lines_are_documents(tmp_path):
    lines = [json.dumps({"text": text, "id": 1}) for text in ("one", "zwei\nlang é", " ")]
    found = collect([write(tmp_path, **{"d.jsonl": "\n".join(lines) + "\n\n"})])
    assert texts(found) == ["one", "zwei\nlang é"]
    assert [document.start for document in found.documents()] == [0, len(lines[0]) + 1]


@pytest.mark.parametrize(
    "line", ["no json", "[1]", '{"body": "x"}', '{"text": 3}', '{"text": "\\ud800"}', "[" * 100_000]
)
def test_json_lines_that_are_not(tmp_path, line):
    write(tmp_path, **{"d.jsonl": json.dumps({"text": "fine"}) + "\n" + line})
    with pytest.raises(DataError, match=r'expected \{"text": "..."\} in the line at offset 17 of'):
        texts(collect([tmp_path]))


def test_a_very_large_file_is_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("lightwell.data.sources.BLOCK", 1000)
    text = "".join(f"Absatz {number} über nichts.\n\n" for number in range(500))
    write(tmp_path, **{"large.txt": b"\xef\xbb\xbf" + text.encode(), "wide.txt": "é" * 3000})
    for name, content in (("large.txt", text), ("wide.txt", "é" * 3000)):
        documents = list(collect([tmp_path / name]).documents())
        data = (tmp_path / name).read_bytes()
        assert "".join(document.text.decode() for document in documents) == content
        assert len(documents) > len(data) / 2500
        assert all(data[d.start :].startswith(d.text) and len(d.text) <= 2000 for d in documents)
    lines = "".join(json.dumps({"text": f"{number} é"}) + "\n" for number in range(300))
    write(tmp_path / "j", **{"a.jsonl": lines})
    assert texts(collect([tmp_path / "j"])) == [f"{number} é" for number in range(300)]
    cut = limit(collect([tmp_path / "j"]), 3000, seed=0)
    assert texts(cut) == [f"{number} é" for number in range(len(texts(cut)))]
    write(tmp_path / "bad", **{"a.txt": "é".encode() * 3000 + b"\xff" + b"x" * 3000})
    with pytest.raises(DataError, match="0xFF at offset 6000"):
        texts(collect([tmp_path / "bad"]))


def test_limit_reads_a_choice_of_files(tmp_path):
    write(tmp_path, **{f"{number:02}.txt": f"{number:02}" * 50 for number in range(20)})
    whole = collect([tmp_path])
    chosen = limit(whole, 450, seed=1)
    assert chosen.n_bytes == 450
    assert [len(text) for text in texts(chosen)].count(100) == 4
    assert names(chosen, tmp_path) == sorted(names(chosen, tmp_path))
    assert names(chosen, tmp_path) == names(limit(whole, 450, seed=1), tmp_path)
    assert names(chosen, tmp_path) != names(limit(whole, 450, seed=2), tmp_path)
    assert names(limit(whole, 10**9, seed=2), tmp_path) == names(whole, tmp_path)
    with pytest.raises(DataError, match="at least 1 byte"):
        limit(whole, 0, seed=1)


def test_limit_never_cuts_a_character_or_a_json_line(tmp_path):
    write(tmp_path, **{"a.txt": "é" * 100})
    assert texts(limit(collect([tmp_path]), 51, seed=0)) == ["é" * 25]
    lines = "".join(json.dumps({"text": str(number) * 10}) + "\n" for number in range(10))
    write(tmp_path / "j", **{"a.jsonl": lines})
    assert texts(limit(collect([tmp_path / "j"]), 60, seed=0)) == ["0" * 10, "1" * 10]
    write(tmp_path / "bad", **{"a.txt": b"good \xff" + b"x" * 100})
    with pytest.raises(DataError, match="offset 5"):
        texts(limit(collect([tmp_path / "bad"]), 50, seed=0))


def test_the_standard_library_is_there_and_has_no_tests():
    files = standard_library()
    assert len(files) > 300
    size = sum(path.stat().st_size for path in files)
    assert 5e6 < size < 30e6
    parts = {part for path in files for part in path.parts}
    assert not parts & {"site-packages", "test", "__pycache__"}
    assert {"argparse.py", "json"} <= parts
    assert all(path.suffix == ".py" for path in files)
