"""The window rule, played through token by token."""

from __future__ import annotations

import pytest

from lightwell.generation.window import window_length


@pytest.mark.parametrize("context_length", [1, 2, 3, 7, 8])
def test_the_window_grows_and_is_cut_to_its_last_half(context_length: int) -> None:
    seen = 0
    for n_tokens in range(1, 50):
        seen += 1
        if seen > context_length:
            seen = max(context_length // 2, 1)
        assert window_length(n_tokens, context_length) == seen


def test_the_example_of_its_docstring() -> None:
    assert [window_length(n, 8) for n in (1, 2, 8, 9, 10, 13, 14)] == [1, 2, 8, 4, 5, 8, 4]
