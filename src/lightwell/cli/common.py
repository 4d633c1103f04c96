"""What several commands share: options, words on stderr, results on stdout, signals."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from lightwell.errors import UserError
from lightwell.show.units import json_ready


def make_app() -> typer.Typer:
    """A typer app for one command: plain help, no completion."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


JSON = typer.Option(False, "--json", help="One JSON value on stdout.")


def is_main() -> bool:
    """Whether this process speaks: of several, which torchrun numbers, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Words for the person, on stderr; only the main process of several speaks."""
    if is_main():
        write(text + "\n")


def write(text: str) -> None:
    """To stderr, if somebody reads it: a closed terminal or a full disk for the log must not end a training."""
    with suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)


def show_json(value: Any) -> None:
    """A number that is not finite, for which JSON has no word, is null."""
    print(json.dumps(json_ready(value), ensure_ascii=False, allow_nan=False))


def piped() -> str:
    """All of standard input. Raises UserError where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise _not_utf8() from None


def in_utf8(text: str) -> str:
    """`text`, if it can be written in UTF-8: bytes that cannot are kept by Python in characters of their own."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_utf8() from None
    return text


def _not_utf8() -> UserError:
    return UserError("expected text in UTF-8, got other bytes.", "Convert it: iconv -f latin1 -t utf-8 FILE")


class Stopper:
    """Why to stop: a signal, or the time that a job was given. Called by the loop after each step."""

    def __init__(self, seconds: float | None, elapsed: Callable[[], float]) -> None:
        self.seconds, self.elapsed = seconds, elapsed
        self.reason: str | None = None
        self.training = False  # before training a signal ends at once: nothing is lost

    def __call__(self) -> str | None:
        self.training = True
        if self.reason is None and self.seconds is not None and self.elapsed() > self.seconds:
            self.reason = "the time of --stop-after is over"
        return self.reason


@contextmanager
def stop_by_signal(stopper: Stopper) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop after the step; a second one ends at once with 128 + signal."""

    def handle(number: int, frame: Any) -> None:
        if stopper.reason is not None:
            os._exit(128 + number)
        if not stopper.training:
            raise KeyboardInterrupt
        stopper.reason = f"{signal.Signals(number).name} received"
        if is_main():
            with suppress(OSError):  # a reader that the same signal has ended, as in `2>&1 | tee log`
                os.write(2, b"\nFinishing the step and saving; once more to end at once.\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
