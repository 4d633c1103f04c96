"""What several commands share: options, words on stderr, results on stdout, signals."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from lightwell.config.load import is_utf8
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
        raise not_utf8() from None


def in_utf8(text: str) -> str:
    """`text`, if it can be written in UTF-8; UserError otherwise."""
    if not is_utf8(text):
        raise not_utf8()
    return text


def not_utf8() -> UserError:
    return UserError("expected text in UTF-8, got other bytes.", "Convert it: iconv -f latin1 -t utf-8 FILE")


class Stopper:
    """Why to stop: a signal, or the time that a job was given. Called by the loop after each step."""

    def __init__(self, seconds: float | None, elapsed: Callable[[], float]) -> None:
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(
                f"expected a finite number of minutes above 0 for --stop-after, got {seconds / 60:g}.",
                "Leave it out to train to the end.",
            )
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
    """SIGINT, SIGTERM and SIGHUP ask for a stop after the step; a second one ends at once with 128 + signal."""

    def handle(number: int, frame: Any) -> None:
        if stopper.reason is not None:
            os._exit(128 + number)
        if not stopper.training:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        stopper.reason = f"{signal.Signals(number).name} received"
        if is_main():
            with suppress(OSError):  # a reader that the same signal has ended, as in `2>&1 | tee log`
                os.write(2, b"\nFinishing the step and saving; once more to end at once.\n")

    asked = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    heeded = [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]  # by nohup it is ignored
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
