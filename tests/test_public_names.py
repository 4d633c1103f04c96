"""The public names are a list; adding one is a decision seen in review. Importing them is light."""

import subprocess
import sys
from pathlib import Path

import pytest

import lightwell

NAMES = ["AnswerIsNo", "GPT", "GPTConfig", "GPT_CONFIG_124M", "LightwellError", "ModernConfig", "Run", "StoppedEarly"]
NAMES += ["UserError", "card", "load", "pretrain", "resume", "trace"]
ROOMS = [path.stem for path in (Path(lightwell.__file__).parent).iterdir() if not path.name.startswith("_")]


def test_the_names_are_these():
    assert lightwell.__all__ == NAMES
    for name in NAMES:
        assert getattr(lightwell, name) is not None


def test_no_name_is_a_room_or_module():
    assert len(ROOMS) > 15
    assert not set(NAMES) & set(ROOMS)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="pretrain"):
        _ = lightwell.pretrian


def test_import_and_help_are_light():
    for code in (
        "import lightwell",
        "import lightwell.cli.main as m; m.run(['--help'])",
        "import lightwell.cli.main as m; m.run(['pretrain', '--help'])",
    ):
        check = f"{code}; import sys; assert not {{'torch', 'pydantic', 'numpy'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, timeout=20)
