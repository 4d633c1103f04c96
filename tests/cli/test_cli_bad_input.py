"""Bad input: one sentence with what was expected, what came and what to do; the right exit code; nothing lost."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightwell.cli.main import main, run
from lightwell.files.lock import holder
from lightwell.files.processes import is_alive

TEXT = "".join(f"Line {n}: the {n % 13} wells of {n % 7} villages.\n\n" for n in range(5000))
LIGHTWELL = [sys.executable, "-m", "lightwell"]
SMALL = ["--preset", "nano", "--set", "train.batch_size=4", "--set", "model.context_length=32"]


def said(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code, and the sentence on stderr."""
    code = run(list(arguments))
    return code, capsys.readouterr().err.strip()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "wells.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, text_file) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    assert run(["pretrain", str(text_file), "--steps", "3", *SMALL, "--out", str(path), "--json"]) == 0
    return path


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def one_sentence(text: str) -> bool:
    return text.startswith("lightwell: ") and "Traceback" not in text and len(text.splitlines()) <= 2


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"\x00\x01\x02\xff" * 50_000, "text"), ("grün " * 40_000, "offset"), (b"too short", "kB")],
    ids=["empty", "binary", "latin-1", "short"],
)
def test_a_file_that_cannot_be_trained_on(capsys, tmp_path, content, word):
    path = tmp_path / "bad.txt"
    path.write_bytes(content.encode("latin-1") if isinstance(content, str) else content)
    code, sentence = said(capsys, "pretrain", str(path), "--steps", "1", *SMALL, "--out", str(tmp_path / "run"))
    assert code == 2
    assert one_sentence(sentence), sentence
    assert word in sentence


def test_an_empty_folder_and_a_missing_path(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("empty", "absent"):
        code, sentence = said(capsys, "pretrain", str(tmp_path / path), "--steps", "1", "--out", str(tmp_path / "run"))
        assert code == 2
        assert one_sentence(sentence), sentence
        assert path in sentence


def test_a_folder_without_readable_text(capsys, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    code, sentence = said(capsys, "pretrain", str(tmp_path / "images"), "--steps", "1", "--out", str(tmp_path / "run"))
    assert code == 2
    assert one_sentence(sentence), sentence


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--minutes", "0"], "more than 0"),
        (["--steps", "-3"], "more than 0"),
        (["--steps", "3", "--minutes", "2"], "one budget"),
        (["--set", "train.batchsize=3"], "batch_size"),
        (["--set", "trian.batch_size=3"], "train"),
        (["--set", "nonsense"], "section.key=value"),
        (["--preset", "nanno"], "nano"),
        (["--config", "absent.toml"], "absent.toml"),
        (["--device", "tpu"], "tpu"),
        (["--minutes", "soon"], "soon"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_an_option_that_is_wrong(capsys, text_file, tmp_path, arguments, word):
    code, sentence = said(capsys, "pretrain", str(text_file), "--out", str(tmp_path / "run"), *arguments)
    assert code == 2
    assert "Traceback" not in sentence
    assert word in sentence


def test_several_problems_come_in_one_exit(capsys, text_file, tmp_path):
    wrong = ["model.n_heads=5", "model.emb_dim=768", "model.n_layers=-1", "model.drop_rate=1.5", "model.n_haeds=12"]
    settings = [part for key in wrong for part in ("--set", key)]
    code, sentence = said(capsys, "pretrain", str(text_file), *settings, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "4 problems" in sentence


def test_as_json_an_error_is_one_value(capsys, tmp_path):
    assert run(["pretrain", str(tmp_path / "absent"), "--steps", "1", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"kind", "message", "hint"}
    assert "absent" in error["message"]


def test_a_folder_that_is_no_run(capsys, tmp_path):
    for command in ("resume", "generate", "evaluate", "trace", "verify"):
        code, sentence = said(capsys, command, str(tmp_path))
        assert code == 2, command
        assert one_sentence(sentence), sentence


def test_a_prompt_longer_than_the_context(capsys, trained):
    code, sentence = said(capsys, "generate", str(trained), "wells " * 200)
    assert code == 2
    assert "31 tokens" in sentence


def test_a_flipped_byte_is_found_and_the_checkpoint_before_is_used(capsys, copy):
    newest = sorted((copy / "checkpoints").iterdir())[-1] / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    code, _ = said(capsys, "runs", str(copy), "--check")
    assert code == 4
    assert run(["generate", str(copy), "Line", "--max-new-tokens", "3"]) == 0


def test_a_flipped_byte_in_the_data_is_refused(capsys, copy):
    """Going on would train on another text without a word."""
    shard = copy / "dataset" / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, sentence = said(capsys, "resume", str(copy), "--extend-steps", "2")
    assert code == 2
    assert "train-00000.bin" in sentence
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run(["resume", str(copy), "--extend-steps", "2"]) == 0


def test_all_checkpoints_broken(capsys, copy):
    for checkpoint in (copy / "checkpoints").iterdir():
        (checkpoint / "model.safetensors").unlink()
    code, sentence = said(capsys, "generate", str(copy), "Line")
    assert code == 2
    assert "good checkpoint" in sentence
    assert said(capsys, "runs", str(copy), "--check")[0] == 4
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    assert said(capsys, "runs", str(copy), "--check")[0] == 4, "nothing is wrong with what is there, but it is no model"


@pytest.mark.parametrize(
    ("key", "other", "word"),
    [
        ("n_layers = 4", "n_layers = 5", "blocks.4"),
        ("n_layers = 4", "n_layers = 2", "blocks.2"),
        ('name = "muon"', 'name = "adamw"', "optimizer.name: muon -> adamw"),
        ("batch_size = 4", "batch_size = 8", "train.batch_size: 4 -> 8"),
        ("steps = 3", "steps = 5", "--extend-steps"),
        ("seed = 1337", "seed = 1", "run.seed: 1337 -> 1"),
    ],
)
def test_a_config_that_was_changed_is_another_runs(capsys, copy, key, other, word):
    """Going on would be another training without a word."""
    config = (copy / "config.toml").read_text(encoding="utf-8")
    assert key in config
    (copy / "config.toml").write_text(config.replace(f"\n{key}\n", f"\n{other}\n"), encoding="utf-8")
    code, sentence = said(capsys, "resume", str(copy), "--extend-steps", "2")
    assert code == 2
    assert one_sentence(sentence), sentence
    assert word in sentence, sentence
    assert run(["runs", str(copy), "--check"]) == 4


def test_a_config_may_say_otherwise_what_decides_no_number(capsys, copy):
    config = (copy / "config.toml").read_text(encoding="utf-8")
    (copy / "config.toml").write_text(config.replace("keep = 3", "keep = 1"), encoding="utf-8")
    assert run(["resume", str(copy), "--extend-steps", "1"]) == 0
    assert len(list((copy / "checkpoints").glob("step-*"))) <= 2, "the last and the best"


def test_a_damaged_tokenizer_is_noticed_before_the_first_step(capsys, copy):
    (copy / "tokenizer.json").write_bytes(b"")
    code, sentence = said(capsys, "resume", str(copy), "--extend-steps", "2")
    assert code == 2
    assert one_sentence(sentence), sentence
    assert "Put back the tokenizer.json" in sentence
    assert max(int(path.name.split("-")[1]) for path in (copy / "checkpoints").glob("step-*")) == 3


def test_a_tokenizer_that_does_not_fit_the_model(capsys, copy, text_file, tmp_path):
    from lightwell.tokenizer.simple import BytesTokenizer

    BytesTokenizer().save(copy)
    code, sentence = said(capsys, "generate", str(copy), "Line")
    assert code == 2
    assert "tokenizer" in sentence


def test_a_run_of_an_unknown_format(capsys, copy):
    config = copy / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("format = 1", "format = 99"), encoding="utf-8")
    code, sentence = said(capsys, "generate", str(copy), "Line")
    assert code == 2
    assert "99" in sentence


def test_an_out_that_is_taken_or_cannot_be_made(capsys, tmp_path, text_file, trained):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not yours", encoding="utf-8")
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    for out in (tmp_path / "mine", tmp_path / "file", tmp_path / "file" / "below"):
        code, sentence = said(capsys, "pretrain", str(text_file), "--steps", "1", *SMALL, "--out", str(out))
        assert code == 2, out
        assert one_sentence(sentence), sentence
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "not yours"


def test_no_permission(capsys, tmp_path, text_file):
    closed = Path("/sys")  # where not even root may make a folder
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
    elif not closed.is_dir():
        pytest.skip("root may write everywhere here")
    code, sentence = said(capsys, "pretrain", str(text_file), "--steps", "1", *SMALL, "--out", str(closed / "run"))
    assert code == 2
    assert one_sentence(sentence), sentence
    assert "no permission" in sentence or "read-only" in sentence  # /sys may be mounted either way


@pytest.mark.parametrize("limit_bytes", [100_000, 1_000_000], ids=["in the data", "in the first checkpoint"])
def test_no_space(capsys, tmp_path, text_file, limit_bytes):
    """A limit on the size of a file stands for the full disk; once it is gone, the same command goes through."""
    import resource

    command = ["pretrain", str(text_file), "--steps", "2", *SMALL, "--out", str(tmp_path / "run")]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        code, sentence = said(capsys, *command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code in (2, 3), sentence
    assert "Traceback" not in sentence
    assert "file-size limit" in sentence
    assert run(command) == 0


def test_names_that_no_disk_takes(capsys, tmp_path, text_file):
    for command in (
        ["pretrain", str(text_file), "--steps", "1", "--out", str(tmp_path / ("a" * 300))],
        ["generate", "a" * 5000, "x"],
    ):
        code, sentence = said(capsys, *command)
        assert code == 2
        assert one_sentence(sentence), sentence


def test_another_request_in_the_same_out_is_refused_with_the_difference(capsys, trained, text_file):
    code, sentence = said(capsys, "pretrain", str(text_file), "--steps", "9", *SMALL, "--out", str(trained))
    assert code == 2
    assert "budget.steps: 3 -> 9" in sentence


def test_an_interruption_is_said(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightwell.inspection.list_presets", interrupt)
    code, sentence = said(capsys, "presets")
    assert code == 130
    assert sentence.startswith("lightwell: interrupted")


def test_a_reader_that_has_seen_enough():
    """As in `lightwell presets | head -0`: no error, no words."""
    command = [sys.executable, "-m", "lightwell", "presets", "nano", "--explain"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0


def test_an_unknown_command_and_none(capsys):
    code, sentence = said(capsys, "pretran")
    assert code == 2
    assert "pretran" in sentence


def heed_signals():
    """Those that are ignored where the tests run in the background or under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_saves_and_says_how_to_go_on(text_file, tmp_path, number):
    out = tmp_path / "run"
    command = [*LIGHTWELL, "pretrain", str(text_file), "--steps", "100000", *SMALL, "--out", str(out)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed_signals)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2)
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
    finally:
        process.kill()  # where it went on
    assert process.returncode == 3, words
    assert f"lightwell resume {out}" in words
    assert "Traceback" not in words


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["pretrain", "plan"])
def test_a_signal_before_the_first_step_is_said_in_json(text_file, tmp_path, number, command):
    out = ["--out", str(tmp_path / "run")] if command == "pretrain" else []
    arguments = [*LIGHTWELL, command, str(text_file), "--minutes", "30", *out, "--json"]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, **quiet, text=True, preexec_fn=heed_signals)
    try:
        time.sleep(4)
        process.send_signal(number)
        answer, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert json.loads(answer)["error"]["kind"] == "interrupted"


def test_a_working_folder_that_was_deleted(tmp_path):
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec {' '.join(LIGHTWELL)} runs"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert one_sentence(done.stderr), done.stderr
    assert "deleted" in done.stderr


def test_what_a_shells_empty_variable_leaves(capsys, text_file, tmp_path):
    for command in (
        ["plan", str(text_file), "--steps", "3", "--config", ""],
        ["pretrain", str(text_file), "--steps", "1", "--out", ""],
        ["resume", ""],
        ["runs", ""],
    ):
        code, sentence = said(capsys, *command)
        assert code == 2
        assert one_sentence(sentence), sentence
        assert "variable of the shell" in sentence


@pytest.mark.parametrize("minutes", ["nan", "-1", "0", "inf"])
def test_a_time_to_stop_after_that_is_none(capsys, text_file, tmp_path, minutes):
    out = tmp_path / "run"
    arguments = ["pretrain", str(text_file), "--steps", "1", *SMALL, "--out", str(out), "--stop-after", minutes]
    code, sentence = said(capsys, *arguments)
    assert code == 2
    assert one_sentence(sentence), sentence
    assert "--stop-after" in sentence
    assert not out.exists()


def test_sizes_beyond_all_measure_are_refused_at_once(capsys, text_file):
    for setting in ("train.batch_size=100000000000", "budget.minutes=1e308"):
        code, sentence = said(capsys, "plan", str(text_file), "--preset", "nano", "--set", setting)
        assert code == 2
        assert one_sentence(sentence), sentence
        assert "at most" in sentence


def test_a_disk_too_small_for_one_checkpoint_is_noticed_before_the_first_step(capsys, monkeypatch, text_file, tmp_path):
    from lightwell import beginning
    from lightwell.errors import SpaceError

    def full(path, n_bytes):
        assert n_bytes > 10_000
        raise SpaceError(f"expected space for {path}.")

    monkeypatch.setattr(beginning, "require_space", full)
    code, sentence = said(capsys, "pretrain", str(text_file), "--steps", "1", *SMALL, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "expected space" in sentence
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_selftest_that_is_ended_leaves_no_files_and_no_process(tmp_path):
    process = subprocess.Popen([*LIGHTWELL, "selftest"], env=os.environ | {"TMPDIR": str(tmp_path)})
    training, deadline = None, time.monotonic() + 90
    while training is None and time.monotonic() < deadline:
        time.sleep(0.05)
        locks = tmp_path.glob("lightwell-selftest-*/*/lock")
        training = next((who for lock in locks if (who := holder(lock.parent))), None)
    assert training is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("lightwell-selftest-*"))
    assert not is_alive(training["pid"])


def test_an_end_of_a_long_prompt_can_be_gone_on_from(capsys, trained):
    arguments = ["generate", str(trained), "wells " * 200, "--max-new-tokens", "3", "--truncate-prompt", "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 3


def test_a_prompt_that_is_refused_is_not_written_first(capsys, trained):
    assert run(["generate", str(trained), "wells " * 200]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert one_sentence(told.err), told.err


def test_a_prompt_that_is_refused_does_not_end_a_conversation(capsys, monkeypatch, trained):
    typed = iter(["wells " * 200, "wells"])

    def ask(_):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert run(["generate", str(trained), "--max-new-tokens", "3"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("wells")
    assert "expected a prompt of at most" in told.err


def test_what_lies_in_out_already_is_not_deleted(capsys, text_file, tmp_path):
    """The user's own texts in a folder called dataset, their own config.toml."""
    work = tmp_path / "work"
    (work / "dataset").mkdir(parents=True)
    shutil.copy(text_file, work / "dataset")
    for text in (str(work / "dataset"), str(text_file)):
        code, sentence = said(capsys, "pretrain", text, "--steps", "1", *SMALL, "--out", str(work))
        assert code == 2
        assert one_sentence(sentence), sentence
        assert "dataset" in sentence
        assert (work / "dataset" / text_file.name).read_bytes() == text_file.read_bytes()
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.toml").write_text('baseURL = "https://example.org"\n')
    code, sentence = said(capsys, "pretrain", str(text_file), "--steps", "1", *SMALL, "--out", str(own))
    assert code == 2
    assert "config.toml" in sentence
    assert [path.name for path in own.iterdir()] == ["config.toml"]


def test_a_mistyped_text_leaves_no_folder(capsys, tmp_path):
    code, _ = said(capsys, "pretrain", str(tmp_path / "absent"), "--steps", "1", "--out", str(tmp_path / "run"))
    assert code == 2
    assert list(tmp_path.iterdir()) == []


def test_another_text_or_another_beginning_is_not_taken_for_the_same_run(capsys, copy, text_file, trained, tmp_path):
    other = tmp_path / "other.txt"
    shutil.copy(text_file, other)
    asked = ["--steps", "3", *SMALL, "--out", str(copy)]
    code, sentence = said(capsys, "pretrain", str(other), *asked)
    assert code == 2
    assert "given.text" in sentence
    code, sentence = said(capsys, "pretrain", str(text_file), "--from", str(trained), *asked)
    assert code == 2
    assert "given.from" in sentence
    assert said(capsys, "pretrain", str(text_file), *asked)[0] == 0


def test_the_folder_of_the_run_itself_is_not_read(text_file, tmp_path):
    shutil.copy(text_file, tmp_path)
    assert run(["pretrain", str(tmp_path), "--steps", "1", *SMALL, "--out", str(tmp_path / "run"), "--json"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "dataset" / "documents.jsonl").read_text().splitlines()]
    assert {Path(row["source"]).name for row in rows if "left_out" not in row} == {text_file.name}


def test_an_answer_that_is_no_is_one_json_value(capsys, copy):
    weights = next((copy / "checkpoints").glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert run(["runs", str(copy), "--check", "--json"]) == 4
    told = capsys.readouterr()
    assert not all(row["good"] for row in json.loads(told.out))
    assert "not every file" in told.err
    assert run(["runs", str(copy), "--pin", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pinned": 3}
    assert run(["runs", str(copy), "--csv", "--json"]) == 2
    assert run(["runs", str(copy), "--csv", "--check"]) == 2


@pytest.mark.parametrize("command", ["generate", "tokenize"])
@pytest.mark.parametrize("piped", [True, False])
def test_text_that_is_not_utf_8(capsys, monkeypatch, trained, command, piped):
    """In a pipe, and as Python hands over an argument: with the bytes in characters of their own."""
    if piped:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"gr\xfcn"), encoding="utf-8"))
    code, sentence = said(capsys, command, str(trained), *([] if piped else [os.fsdecode(b"gr\xfcn")]))
    assert code == 2
    assert one_sentence(sentence), sentence
    assert "UTF-8" in sentence


def test_nothing_but_blanks_is_no_text_to_measure_on(capsys, trained, tmp_path):
    (tmp_path / "blank.txt").write_text(" " * 16_000)
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    for name in ("blank.txt", "blank.jsonl"):
        code, sentence = said(capsys, "evaluate", str(trained), str(tmp_path / name))
        assert code == 2
        assert one_sentence(sentence), sentence


def test_prepared_data_has_its_own_held_out_part(capsys, text_file, trained, tmp_path):
    prepared = str(trained / "dataset")
    for arguments in (["--val", str(text_file)], ["--set", "data.limit_bytes=100000"]):
        code, sentence = said(capsys, "pretrain", prepared, "--steps", "1", "--out", str(tmp_path / "run"), *arguments)
        assert code == 2
        assert one_sentence(sentence), sentence
        assert "prepared data" in sentence


# --- what belongs to a run, and what has taken its place --------------------------------------------------------------


def test_another_dataset_under_the_same_name_is_not_taken_for_the_runs_own(capsys, text_file, tmp_path):
    data, run_path = tmp_path / "data", tmp_path / "run"
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("wells", "walls").replace("villages", "valleys"), encoding="utf-8")
    assert run(["prepare", str(text_file), "--out", str(data), "--vocab-size", "300"]) == 0
    assert run(["pretrain", str(data), "--steps", "2", *SMALL, "--out", str(run_path), "--json"]) == 0
    assert run(["evaluate", str(run_path)]) == 0
    shutil.rmtree(data)
    assert run(["prepare", str(other), "--out", str(data), "--vocab-size", "300"]) == 0
    capsys.readouterr()
    for command in (["evaluate", str(run_path)], ["resume", str(run_path), "--extend-steps", "1"]):
        code, sentence = said(capsys, *command)
        assert code == 2
        assert one_sentence(sentence), sentence
        assert "other data" in sentence
    assert run(["runs", str(run_path), "--check"]) == 4
    assert "BROKEN" in capsys.readouterr().out


def test_another_tokenizer_of_the_same_size_is_noticed(capsys, copy, trained):
    content = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"], content["model"]["merges"] = _with_another_last_token(content["model"])
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    code, sentence = said(capsys, "generate", str(copy), "a", "--max-new-tokens", "1")
    assert code == 2
    assert one_sentence(sentence), sentence
    assert "another one" in sentence
    assert run(["runs", str(copy), "--check"]) == 4


def _with_another_last_token(model):
    """The vocabulary and merges with another last merge, of the same size: the first pair of letters that is free."""
    *merges, last = [tuple(pair) for pair in model["merges"]]
    vocab = {token: place for token, place in model["vocab"].items() if token != "".join(last)}
    pairs = (pair for pair in ((a, b) for a in "zqxj" for b in "zqxj") if "".join(pair) not in vocab)
    new = next(pairs)
    return vocab | {"".join(new): model["vocab"]["".join(last)]}, [*merges, new]


def test_other_sizes_in_a_runs_config_are_noticed(capsys, copy):
    config = copy / "config.toml"
    config.write_text(config.read_text().replace("emb_dim = ", "emb_dim = 1"))  # 16 times and more as wide
    for command in (["generate", str(copy), "a"], ["evaluate", str(copy)], ["resume", str(copy)]):
        code, sentence = said(capsys, *command)
        assert code == 2, sentence
        assert one_sentence(sentence), sentence
        assert "of shape" in sentence
    assert run(["runs", str(copy), "--check"]) == 4


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"\xff" * 5000, b"no database"])
def test_damaged_metrics_do_not_make_a_model_unusable(capsys, copy, content):
    (copy / "run.sqlite").write_bytes(content)
    assert run(["generate", str(copy), "a", "--max-new-tokens", "2"]) == 0
    assert run(["evaluate", str(copy)]) == 0
    assert run(["runs", str(copy)]) == 0
    assert run(["runs", str(copy), "--check"]) == 4
    assert "BROKEN" in capsys.readouterr().out


def test_one_bad_run_does_not_hide_the_others(capsys, copy, monkeypatch, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copytree(copy, runs / "good-1")
    (runs / "bad-1").mkdir()
    (runs / "bad-1" / "config.toml").write_text("not = = toml")
    (runs / "bad-2").mkdir()
    (runs / "bad-2" / "config.toml").write_text("format = 1\n[model]\nfamly = 3\n")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run(["runs", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "bad-1": "broken",
        "bad-2": "broken",
        "good-1": "done",
    }
    assert "bad-1" in rows["bad-1"]["said"]
    assert run(["runs"]) == 0
    assert "good-1" in capsys.readouterr().out
    assert run(["runs", "--check"]) == 4


# --- what is named as text --------------------------------------------------------------------------------------------


def test_a_run_or_a_dataset_is_not_read_as_text(capsys, trained, text_file, tmp_path):
    data = tmp_path / "data"
    assert run(["prepare", str(text_file), "--out", str(data)]) == 0
    capsys.readouterr()
    for command, word in (
        (["pretrain", str(trained), "--steps", "1", "--out", str(tmp_path / "new")], "resume"),
        (["evaluate", str(trained), str(trained)], "got a run"),
        (["evaluate", str(trained), str(data)], "prepared dataset"),
        (["prepare", str(data), "--out", str(tmp_path / "again")], "prepared dataset"),
        (["evaluate", str(trained), ""], "empty path"),
        (["prepare", "", "--out", str(tmp_path / "again")], "empty path"),
    ):
        code, sentence = said(capsys, *command)
        assert code == 2, sentence
        assert one_sentence(sentence), sentence
        assert word in sentence, sentence


def test_an_odd_file_in_a_folder_is_skipped(capsys, text_file, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(text_file, folder)
    (folder / "dump.dat").write_bytes(b"a" * 9000 + b"\xff\xfe")
    assert run(["prepare", str(folder), "--out", str(tmp_path / "data"), "--json"]) == 0
    (folder / "dump.txt").write_bytes(b"a" * 9000 + b"\xff\xfe")  # this one says that it is text
    capsys.readouterr()
    code, sentence = said(capsys, "prepare", str(folder), "--out", str(tmp_path / "data2"))
    assert (code, "offset 9000" in sentence) == (2, True)


def test_a_vocabulary_is_for_what_is_read(text_file, tmp_path):
    from lightwell.data.dataset import open_dataset
    from lightwell.tokenizer.size import choose_vocab_size

    long = tmp_path / "long.txt"
    long.write_text("".join(f"{n} {n * n} {n**3}: other words.\n\n" for n in range(60_000)))
    assert choose_vocab_size(long.stat().st_size) > choose_vocab_size(200_000)
    assert run(["prepare", str(long), "--out", str(tmp_path / "d"), "--limit-bytes", "200000"]) == 0
    assert open_dataset(tmp_path / "d").tokenizer.vocab_size <= choose_vocab_size(200_000)


# --- options and places -----------------------------------------------------------------------------------------------


def test_options_that_would_do_nothing_are_refused(capsys, text_file, trained, tmp_path):
    for command, word in (
        (["pretrain", str(text_file), "--steps", "1", "--profile", "--out", str(tmp_path / "x")], "--out"),
        (
            ["prepare", str(text_file), "--out", str(tmp_path / "y"), "--tokenizer", "bytes", "--vocab-size", "999"],
            "size",
        ),
        (["resume", str(trained), "--extend-steps", "0"], "extend-steps"),
        (["selftest", "--dtype", "float16"], "bfloat16"),
    ):
        code, sentence = said(capsys, *command)
        assert code == 2, sentence
        assert "Traceback" not in sentence
        assert word in sentence, sentence


def test_a_file_where_a_folder_should_be(capsys, text_file, trained):
    for command in (["export", str(trained)], ["prepare", str(text_file)], ["import", str(trained)]):
        code, sentence = said(capsys, *command, "--out", str(text_file / "x"))
        assert code == 2, sentence
        assert one_sentence(sentence), sentence


def test_commands_that_are_suggested_can_be_copied(capsys, text_file, tmp_path):
    out = tmp_path / "a folder" / "run"
    code, sentence = said(
        capsys, "pretrain", str(text_file), "--steps", "400", *SMALL, "--out", str(out), "--stop-after", "1e-9"
    )
    assert code == 3
    assert f"lightwell resume '{out}'" in sentence


def test_the_end_of_a_resumed_run_says_what_was_done(capsys, copy):
    assert run(["resume", str(copy)]) == 0
    assert "no step was left to make" in capsys.readouterr().out
    assert run(["resume", str(copy), "--extend-steps", "2"]) == 0
    assert "in 5 steps, 2 of them now" in capsys.readouterr().out


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full(text_file, tmp_path, closed):
    line = shlex.join([*LIGHTWELL, "pretrain", str(text_file), "--steps", "2", *SMALL, "--out", "run", "--json"])
    done = subprocess.run(f"{line} {closed}", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if closed != ">&-":
        assert json.loads(done.stdout)["steps"] == 2


@pytest.mark.parametrize("pid", [10**30, 0, -1])
def test_a_number_that_no_process_has(pid):
    assert not is_alive(pid)
    assert is_alive(os.getpid())


def test_main_may_be_called_from_another_thread():
    """Signals can be handled in the main thread only."""
    found = []

    def call():
        with pytest.raises(SystemExit) as left:
            main(["--version"])
        found.append(left.value.code)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [0]


def test_a_broken_run_does_not_end_a_table_of_all(capsys, trained, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "a" / "run.sqlite").write_bytes(b"no database " * 500)
    (tmp_path / "a" / "config.toml").write_text("format = 1\n[model]\nemb_dim = -3\n")
    assert run(["runs", str(tmp_path), "--csv"]) == 0
    told = capsys.readouterr()
    assert str(tmp_path / "b") in told.out
    assert str(tmp_path / "a") in told.err
    assert run(["runs", str(tmp_path / "a"), "--csv"]) == 2


@pytest.mark.parametrize(
    "setting",
    [
        "runtime.threads=100000",
        "budget.steps=" + "9" * 400,
        "train.batch_size=" + "9" * 5000,
        "train.prompts=" + "[" * 5000,
        "run.name=b\udcff",
        "data.val=['bad\udcff.txt']",
    ],
    ids=["threads", "steps", "digits", "brackets", "name", "val"],
)
def test_values_that_no_run_can_have(capsys, text_file, tmp_path, setting):
    out = tmp_path / "run"
    code, sentence = said(capsys, "pretrain", str(text_file), *SMALL, "--set", setting, "--out", str(out))
    assert code == 2, sentence
    assert "Traceback" not in sentence
    assert f"{setting.split('=')[0]}: expected" in sentence
    assert not out.exists()


def test_a_run_whose_folder_is_not_utf8_goes_on(capsys, trained, tmp_path):
    moved = Path(shutil.copytree(trained, tmp_path / "o\udcff"))
    code, words = said(capsys, "resume", str(moved), "--extend-steps", "1")
    assert code == 0, words


def test_ctrl_c_before_the_command_begins(capsys, monkeypatch):
    from lightwell.cli import main as module

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "let_threads_wait_as_fits", interrupted)
    assert said(capsys, "pretrain", "x") == (130, "lightwell: interrupted; what was saved before is still there.")

    def broken(*_):
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr(module, "let_threads_wait_as_fits", broken)
    monkeypatch.setattr(module, "CTRL_C", [signal.SIGINT])
    assert said(capsys, "pretrain", "x") == (130, "lightwell: interrupted; what was saved before is still there.")
    monkeypatch.setattr(module, "CTRL_C", [])
    assert said(capsys, "pretrain", "x")[0] == 1


def test_a_finished_run_is_not_said_to_be_trained_again(capsys, text_file, copy):
    assert run(["pretrain", str(text_file), "--steps", "3", *SMALL, "--out", str(copy), "--force"]) == 0
    shown = capsys.readouterr()
    assert f"{copy} is complete: no step was left to make." in shown.out
    assert f"Going on with {copy}." in shown.err


def test_a_run_in_which_no_number_was_finite(capsys, text_file, tmp_path):
    """It was not trained, with --json too, and what to do about it is not to resume."""
    for more in ([], ["--json"]):
        out = tmp_path / f"run{len(more)}"
        asked = ["--steps", "2", *SMALL, "--set", "model.rope_theta=1e-300", "--out", str(out), *more]
        assert run(["pretrain", str(text_file), *asked]) == 3
        shown = capsys.readouterr()
        assert "no step had finite numbers" in (shown.out if more else shown.err)
        assert "resume" not in shown.out + shown.err
        assert "{'loss'" not in shown.err


def test_the_rate_of_a_run_that_begins_again_is_measured(text_file, tmp_path):
    import lightwell

    path = tmp_path / "run"
    assert run(["pretrain", str(text_file), "--steps", "1", *SMALL, "--out", str(path), "--json"]) == 0
    shutil.rmtree(path / "checkpoints" / "step-00000001")
    lightwell.resume(path)
    first = lightwell.load(path).metrics["tokens_per_second"][0][1]
    assert first != pytest.approx(4 * 32 / 1e-3)  # a step in the least time that there is


def test_one_run_that_cannot_be_read_does_not_hide_the_others(capsys, trained, tmp_path, monkeypatch):
    import lightwell.inspection as inspection

    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    real = inspection.list_checkpoints

    def closed(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(inspection, "list_checkpoints", closed)
    assert run(["runs", str(tmp_path / "runs"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["done", "broken"]


def test_metrics_that_are_a_folder_do_not_hide_the_model(capsys, copy):
    (copy / "run.sqlite").unlink()
    (copy / "run.sqlite").mkdir()
    assert run(["generate", str(copy), "a", "--max-new-tokens", "2"]) == 0


def test_the_way_to_convert_a_file_can_be_copied(capsys, tmp_path):
    path = tmp_path / "two words.txt"
    path.write_bytes(("grün " * 40_000).encode("latin-1"))
    _, sentence = said(capsys, "prepare", str(path), "--out", str(tmp_path / "data"))
    assert f"-t UTF-8 '{path}' > converted.txt" in sentence
    path.write_text("grün " * 40_000, encoding="utf-32")
    assert "UTF-32" in said(capsys, "prepare", str(path), "--out", str(tmp_path / "data"))[1]


def test_a_plan_says_what_it_takes_for_granted(capsys, text_file):
    assert run(["plan", str(text_file), "--preset", "nano", "--json"]) == 0
    assert "10 minutes" in json.loads(capsys.readouterr().out)["reasons"][0]


@pytest.mark.parametrize("command", [["trace", "--head", "9.9"], ["trace", "--head", "9.9", "--json"], ["verify"]])
def test_a_head_or_a_length_that_there_is_not(capsys, trained, command):
    name, *rest = command
    text = "well " * 99 if name == "verify" else "well"
    assert run([name, str(trained), *rest, "--text", text]) == 2
    assert "expected a" in "".join(capsys.readouterr())


@pytest.mark.parametrize("setting", ["data.val=['nope']", "data.limit_bytes=1000"])
def test_a_plan_refuses_what_training_would(capsys, text_file, setting):
    code, sentence = said(capsys, "plan", str(text_file), "--steps", "3", *SMALL, "--set", setting)
    assert code == 2
    assert one_sentence(sentence)


def test_a_plan_counts_the_parameters_that_a_run_will_have(capsys, text_file, tmp_path):
    asked = [str(text_file), "--steps", "1", *SMALL, "--set", "tokenizer.kind=bytes", "--json"]
    assert run(["plan", *asked]) == 0
    planned = json.loads(capsys.readouterr().out)["parameters"]["total"]
    assert run(["pretrain", *asked, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert run(["runs", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["parameters"] == planned


def test_where_no_folder_can_be_made(capsys, trained):
    code, sentence = said(capsys, "export", str(trained), "--out", "/proc/here")
    assert (code, "nothing can be made" in sentence) == (2, True)


def test_a_run_that_ended_before_it_began_says_how_to_begin_again(capsys, tmp_path):
    (tmp_path / "run" / "dataset").mkdir(parents=True)
    code, sentence = said(capsys, "resume", str(tmp_path / "run"))
    assert (code, "pretrain ... --out" in sentence) == (2, True)


def test_a_run_whose_metrics_are_destroyed_is_not_said_to_have_stopped(capsys, copy):
    (copy / "run.sqlite").write_bytes(b"nothing" * 1000)
    assert run(["runs", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "got no metrics" in shown
    assert "stopped" not in shown


def test_a_model_that_no_memory_holds_is_refused_before_its_text_is_prepared(capsys, text_file, tmp_path):
    out = tmp_path / "huge"
    sizes = ["--set", "model.emb_dim=65536", "--set", "model.n_layers=100"]
    code, sentence = said(capsys, "pretrain", str(text_file), "--minutes", "1", *sizes, "--out", str(out))
    assert (code, one_sentence(sentence), "free memory" in sentence) == (2, True, True)
    assert not out.exists()


def test_a_file_of_prompts(capsys, trained, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Line\n\nthe wells\n", encoding="utf-8")
    asked = ["generate", str(trained), "--prompts", str(prompts), "--max-new-tokens", "5"]
    assert run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["texts"]) == 2
    assert found["tokens"] <= 10
    assert run(asked) == 0
    assert capsys.readouterr().out.count("Line" + found["texts"][0]) == 1
    for content, word in (("\n \n", "a prompt in each line"), (b"gr\xfcn\n", "UTF-8")):
        prompts.write_bytes(content.encode() if isinstance(content, str) else content)
        code, sentence = said(capsys, *asked)
        assert (code, one_sentence(sentence), word in sentence) == (2, True, True)
    for arguments, word in (((*asked, "Line"), "got both"), ((*asked[:3], str(tmp_path / "none")), "none")):
        code, sentence = said(capsys, *arguments)
        assert (code, one_sentence(sentence), word in sentence) == (2, True, True)


def test_what_smaller_weights_cost_is_measured(capsys, trained):
    bits = []
    for quantize in ([], ["--quantize", "int8"], ["--quantize", "bf16"]):
        assert run(["evaluate", str(trained), *quantize, "--json"]) == 0
        bits.append(json.loads(capsys.readouterr().out)["bits_per_byte"])
    assert bits[0] not in bits[1:]
    assert bits == pytest.approx([bits[0]] * 3, rel=0.01)
    code, sentence = said(capsys, "evaluate", str(trained), "--quantize", "")
    assert (code, one_sentence(sentence)) == (2, True)
