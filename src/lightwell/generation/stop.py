"""Stop strings in a stream of text: where to end, and how much may be shown before it is certain.

A stop string may arrive in several pieces. Text that could still become one is held back until it does, or cannot any
more: so no part of a stop string is ever shown, and everything else is shown as early as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightwell.errors import UserError


class StopStrings:
    """Passes text on, until the first stop string is complete.

    `push(piece)` gives the text that may now be shown. Once a stop string is complete `found` is set, the text before
    it has been given out, and what came after it is dropped. Of several complete at the same character the longest
    counts.
    Raises UserError for an empty stop string.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if isinstance(stop, str) or "" in stop:
            raise UserError(f"expected a list of stop strings with at least one character each, got {stop!r}.")
        self.stop = list(stop)
        self.found: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        text = self._held + piece
        complete = [(begin + len(s), begin, s) for s in self.stop if (begin := text.find(s)) >= 0]
        if complete:
            _, begin, self.found = min(complete)
            self._held = ""
            return text[:begin]
        n_held = self._may_become_stop(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """The text still held back: no more is coming, so it is not a stop string."""
        held, self._held = self._held, ""
        return held

    def _may_become_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = min(len(text), max(map(len, self.stop), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self.stop)), 0)
