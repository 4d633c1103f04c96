"""Lightwell trains GPT language models on the text and the machine you have, and lets you see into every part of them.

    import lightwell

    run = lightwell.pretrain("notes/", minutes=5)
    print(run.generate("Once", max_new_tokens=50, seed=1))

Importing this loads neither torch nor pydantic: each name below is imported from its room when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {  # public name -> module that defines it; tests/test_public_names.py holds this list
    "AnswerIsNo": "lightwell.errors",
    "GPT": "lightwell.model.build",
    "GPTConfig": "lightwell.config.gpt",
    "GPT_CONFIG_124M": "lightwell.config.gpt",
    "LightwellError": "lightwell.errors",
    "ModernConfig": "lightwell.config.gpt",
    "Run": "lightwell.trained",
    "StoppedEarly": "lightwell.errors",
    "UserError": "lightwell.errors",
    "card": "lightwell.glass.card",
    "load": "lightwell.trained",
    "pretrain": "lightwell.api",
    "resume": "lightwell.api",
    "trace": "lightwell.glass.capture",
}
__all__ = sorted(_NAMES)

if TYPE_CHECKING:
    from lightwell.api import pretrain as pretrain
    from lightwell.api import resume as resume
    from lightwell.config.gpt import GPT_CONFIG_124M as GPT_CONFIG_124M
    from lightwell.config.gpt import GPTConfig as GPTConfig
    from lightwell.config.gpt import ModernConfig as ModernConfig
    from lightwell.errors import AnswerIsNo as AnswerIsNo
    from lightwell.errors import LightwellError as LightwellError
    from lightwell.errors import StoppedEarly as StoppedEarly
    from lightwell.errors import UserError as UserError
    from lightwell.glass.capture import trace as trace
    from lightwell.glass.card import card as card
    from lightwell.model.build import GPT as GPT
    from lightwell.trained import Run as Run
    from lightwell.trained import load as load


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'lightwell' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
