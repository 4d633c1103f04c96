"""Documentation that fails when it lies: commands run, files exist, every command and preset is documented."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightwell.cli.main import COMMANDS
from lightwell.config.presets import PRESETS
from lightwell.config.run import RunConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def lightwell(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lightwell", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


def test_every_file_that_reading_names_exists():
    text = (ROOT / "READING.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len([name for name in linked if name.startswith("src/")]) == 10
    named = [f"src/lightwell/{name}" for name in re.findall(r"`(\w+/[\w/]+\.\w+)`", text) if "tests/" not in name]
    assert len(named) > 8
    assert [name for name in linked + named if not (ROOT / name).is_file()] == []


def test_every_link_in_the_readme_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_each_help_ends_with_an_example_of_its_own_command(tmp_path):
    assert len(COMMANDS) >= 17
    for name in COMMANDS:
        for arguments in [[name], [name, "show"], [name, "diff"]] if name == "data" else [[name]]:
            shown = lightwell(*arguments, "--help", cwd=tmp_path)
            assert shown.returncode == 0, shown.stderr
            assert "For instance:\n" in shown.stdout
            examples = [line for line in shown.stdout.split("For instance:\n")[-1].splitlines() if line.strip()]
            assert any(line.startswith(f"    lightwell {name}") for line in examples), f"{name} --help has no example"
            assert all(line.startswith("    lightwell ") for line in examples), (
                f"lines that cannot be copied: {examples}"
            )


def test_every_key_of_the_presets_has_a_meaning():
    from lightwell.planner.shelf import meanings

    texts = meanings()
    for raw in PRESETS.values():
        for section, values in raw.items():
            assert {f"{section}.{key}" for key in values} <= texts.keys()
    sections = RunConfig.model_fields
    keys = {f"{name}.{key}" for name, section in sections.items() for key in section.annotation.model_fields}
    assert texts.keys() == keys  # each has a meaning, and no other


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("lightwell ")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readmes_commands_run_in_order(tmp_path):
    """With `--minutes 5` made a few steps; everything else is typed as it stands."""
    commands = readme_commands()
    assert len(commands) > 8
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("argparse", "asyncio", "decimal"):
        module = __import__(name)
        (notes / f"{name}.py").write_bytes(Path(module.__file__).read_bytes())
    (notes / "topics.py").write_bytes(Path(__import__("pydoc_data.topics").topics.__file__).read_bytes())
    for command in commands:
        arguments = shlex.split(re.sub(r"--minutes \d+", "--steps 3 --preset nano", command))[1:]
        done = lightwell(*arguments, cwd=tmp_path)
        expected = 3 if "--stop-after" in command else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"
    python = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert python
    subprocess.run([sys.executable, "-c", python.group(1)], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_installs_without_extras_and_runs_a_command(tmp_path):
    """Into an empty environment; the heavy dependencies are borrowed from this one, not installed again."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True)
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    packages = tmp_path / "empty" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    base = next(p for p in sys.path if p.endswith("site-packages"))
    (packages / "borrowed.pth").write_text(base, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run(
        [python, "-m", "lightwell", "presets", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {row["name"] for row in json.loads(shown.stdout)} == set(PRESETS)
    where = subprocess.run(
        [python, "-c", "import lightwell; print(lightwell.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path) in where.stdout, "the installed wheel was not the one that ran"
