"""Lightwell's errors: one family, each with a sentence for the person who meets it and the exit code of its command.

    LightwellError                1  our bug, or unforeseen
    ├── UserError                 2  the user's mistake: what was expected, what came, what to do next
    │   ├── ConfigError           .. a config, with every problem in it
    │   ├── DataError             .. text or a prepared dataset
    │   ├── TokenizerError        .. a tokenizer, or one that does not fit the model
    │   ├── RunError              .. a run folder or checkpoint that cannot be used
    │   │   ├── DamagedError      .... a file whose bytes are not those that were written
    │   │   └── LockedError       .... another process is using the run
    │   ├── SpaceError            .. no room on the disk
    │   ├── FormatError           .. another project's model files
    │   └── TraceError            .. the glass box was asked for something that is not there
    ├── StoppedEarly              3  stopped before the end; what is saved and how to go on
    │   └── NothingSaved          2  .. nothing is, since no save succeeded
    └── AnswerIsNo                4  ran to the end, and the answer is no

`hint` says what to do next. Nothing here imports anything.
"""

from __future__ import annotations


class LightwellError(Exception):
    """Base of the family. `message` says what was expected and what came; `hint` what to do next (may be empty)."""

    kind = "internal"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UserError(LightwellError):
    kind = "user"
    exit_code = 2


class ConfigError(UserError):
    """A config with problems. `problems` lists each as (key, sentence), e.g. ("model.n_heads", "...")."""

    kind = "config"

    def __init__(self, problems: list[tuple[str, str]], hint: str = "") -> None:
        lines = [f"{key}: {sentence}" if key else sentence for key, sentence in problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        body = _closed(lines[0]) if len(lines) == 1 else "".join(f"\n  - {line}" for line in lines)
        super().__init__(f"{count} in the config: {body}", hint)
        self.problems = problems


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


class DataError(UserError):
    kind = "data"


class TokenizerError(UserError):
    kind = "tokenizer"


class RunError(UserError):
    kind = "run"


class DamagedError(RunError):
    kind = "damaged"


class NotFiniteError(RunError):
    """Weights or moments that training has made NaN or infinite."""


class LockedError(RunError):
    kind = "locked"


class SpaceError(UserError):
    kind = "space"


class FormatError(UserError):
    kind = "format"


class TraceError(UserError):
    kind = "trace"


class StoppedEarly(LightwellError):
    """Training ended before its budget. `hint` is the command that goes on; `details` what `--json` prints."""

    kind = "stopped"
    exit_code = 3

    def __init__(self, message: str, hint: str = "", details: dict[str, object] | None = None) -> None:
        super().__init__(message, hint)
        self.details = details or {}


class NothingSaved(StoppedEarly):
    """Training ended and nothing of it could be saved: there is nothing to go on from."""

    kind = "unsaved"
    exit_code = 2


class AnswerIsNo(LightwellError):
    kind = "no"
    exit_code = 4
