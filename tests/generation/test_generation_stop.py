"""Stop strings, whatever pieces the text comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwell.errors import UserError
from lightwell.generation.stop import StopStrings


def twin(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Character by character: the text before the stop string that is complete first, of several the longest."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


letters = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("ab\n", max_size=4), max_size=12), stops)
def test_the_text_ends_before_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    strings, shown = StopStrings(stop), ""
    expected, found = twin("".join(pieces), stop)
    for piece in pieces:
        shown += strings.push(piece)
        assert expected.startswith(shown)
        if strings.found is not None:
            break
    assert strings.found == found
    assert shown + strings.finish() == expected


@given(letters, stops)
def test_nothing_is_held_back_longer_than_needed(text: str, stop: list[str]) -> None:
    """What is held back could, with the right continuation, still become a stop string."""
    strings = StopStrings(stop)
    shown = strings.push(text)
    if strings.found is None:
        held = text[len(shown) :]
        assert held == "" or any(s.startswith(held) and s != held for s in stop)
        assert strings.finish() == held


@pytest.mark.parametrize("stop", [[""], ["a", ""], "ab"])
def test_an_empty_stop_string_is_refused(stop) -> None:
    with pytest.raises(UserError, match="at least one character"):
        StopStrings(stop)
