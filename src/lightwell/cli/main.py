"""`lightwell COMMAND ...`: finds the command's file, runs it, turns what went wrong into a sentence and an exit code.

0 done; 1 our bug; 2 the user's mistake; 3 stopped early, the last good state is saved; 4 the answer is no.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from lightwell.errors import AnswerIsNo, LightwellError
from lightwell.files.translate import translate
from lightwell.runtime.waiting import let_threads_sleep, let_threads_wait_as_fits

COMMANDS = {  # name -> one line for --help; the command lives in cli/<name>.py (a trailing _ where Python has the word)
    "pretrain": "Train a GPT on text.",
    "resume": "Go on with a run, exactly as if it had never stopped.",
    "generate": "Let a run write text.",
    "evaluate": "Held-out loss, bits per byte and perplexity of a run.",
    "runs": "What runs there are and how they went.",
    "plan": "Parameters, memory, FLOPs and time, before anything runs.",
    "presets": "The shelf of ready configs.",
    "prepare": "Text to a dataset: documents, vocabulary, shards.",
    "data": "What is in a dataset; what differs between two.",
    "tokenize": "Text as coloured tokens, with their ids.",
    "trace": "What happens inside a run's model on a text.",
    "explain": "Where a gradient comes from, factor by factor.",
    "verify": "Check every gradient of a run's model three ways.",
    "diagnose": "Is training healthy, and if not, what to change.",
    "import": "Bring in another project's model.",
    "export": "Give a run to other projects.",
    "selftest": "Is this device right, does resume hold here.",
}
INTERRUPTED = 130  # as shells say it: 128 + SIGINT
TOLD_TO_END = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
TAKE_ANY_TEXT = ("generate", "tokenize", "trace", "verify", "diagnose", "explain")  # an empty one too
CTRL_C: list[int] = []  # that came
REPORT = "This is a bug in Lightwell. Please report it with the lines above."


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return load_command(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def load_command(name: str) -> Any:
    module = importlib.import_module(f"lightwell.cli.{name}_" if name == "import" else f"lightwell.cli.{name}")
    command = get_command(module.app)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nFor instance:\n  lightwell pretrain notes/ --minutes 5",
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Say the version and exit.")) -> None:
    """Train GPT language models on your own text and machine, and see into every part of them."""
    if version:
        from lightwell import __version__

        print(f"lightwell {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_what_is_closed()
    if threading.current_thread() is threading.main_thread():  # handlers that are there already stay
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, note_ctrl_c)
        for number in TOLD_TO_END:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end_in_order)
    try:
        code = run(arguments)
    except SystemExit as left:
        code = int(left.code or 0)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from lightwell.runtime.world import leave

        leave(code)
    sys.exit(code)


def note_ctrl_c(number: int, frame: Any) -> None:
    """As Python does by itself, but remembered: where C code is being imported another error comes of it."""
    CTRL_C.append(number)
    raise KeyboardInterrupt


def end_in_order(number: int, frame: Any) -> None:
    """Temporary files go and child processes end, as with Ctrl-C; the same signal once more ends at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def open_what_is_closed() -> None:
    """A standard stream that was closed before us is an empty one, and takes the lowest number that is free, its own:
    else the first file that we open gets that, and words for the person are written into it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    as_json = "--json" in arguments
    try:
        os.getcwd()
    except FileNotFoundError:  # PyTorch's libraries are not found from there
        return fail("user", "expected a working folder, got one that was deleted.", "cd to another one.", 2, as_json)
    if "" in arguments and arguments[0] not in TAKE_ANY_TEXT:
        return fail("user", "expected a name, got an empty path.", "Is a variable of the shell's not set?", 2, as_json)
    arguments = arguments or ["--help"]
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal of few characters, a path that is not UTF-8: written \u...
        sys.stdout.reconfigure(errors="backslashreplace")
    trains = arguments[:1] in (["pretrain"], ["resume"]) and not {"--help", "-h"} & set(arguments)
    try:
        let_threads_wait_as_fits() if trains else let_threads_sleep()
        result = get_command(app).main(args=arguments, prog_name="lightwell", standalone_mode=False)
        try:
            sys.stdout.flush()
        except OSError as error:
            if isinstance(error, BrokenPipeError) or (theirs := translate(error, "write to standard output")) is None:
                raise
            return fail(theirs.kind, theirs.message, "The command has done its work; what it said is lost.", 2, False)
        if result == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            return interrupted(as_json)
        return result if isinstance(result, int) else 0
    except LightwellError as error:
        code = 0 if error.exit_code == 3 and "TORCHELASTIC_RUN_ID" in os.environ else error.exit_code
        unanswered = as_json and not isinstance(error, AnswerIsNo)  # whose one JSON value is printed by now
        return fail(error.kind, error.message, error.hint, code, unanswered, getattr(error, "details", None))
    except KeyboardInterrupt:
        return interrupted(as_json)
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            if error.code in [128 + number for number in TOLD_TO_END]:
                return interrupted(as_json, int(error.code or 0))
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader, such as `head`, has seen enough
        return 0
    except Exception as error:
        loading = CTRL_C and isinstance(
            error, ImportError | AttributeError
        )  # which come of it while C code is imported
        if loading or type(error).__name__ == "Abort":  # at a question
            return interrupted(as_json)
        if hasattr(error, "format_message"):  # the command line was not understood
            context = getattr(error, "ctx", None)
            where = context.command_path if context else "lightwell"
            return fail("usage", error.format_message(), f"See: {where} --help", 2, as_json)
        if isinstance(error, OSError) and (theirs := translate(error, "read and write files")):
            return fail(theirs.kind, theirs.message, theirs.hint, theirs.exit_code, as_json)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # PyTorch's words
            hint = "Close other programs, or choose a smaller model or batch."
            return fail("memory", "expected more free memory than there is.", hint, 2, as_json)
        traceback.print_exc()
        return fail("internal", f"{type(error).__name__}: {error}", REPORT, 1, as_json)


def interrupted(as_json: bool, code: int = INTERRUPTED) -> int:
    return fail("interrupted", "interrupted; what was saved before is still there.", "", code, as_json)


def fail(kind: str, message: str, hint: str, code: int, as_json: bool, details: Any = None) -> int:
    """Say what went wrong, in words on stderr or as JSON on stdout, if somebody reads it."""
    between = "\n" if "\n" in message else " "
    said, where = f"lightwell: {message}{between}{hint}".rstrip(), sys.stderr
    if as_json:
        error = {"error": {"kind": kind, "message": message, "hint": hint}} | ({"details": details} if details else {})
        said, where = json.dumps(error), sys.stdout
    with suppress(OSError):
        print(said, file=where, flush=True)
    return code


if __name__ == "__main__":
    main()
