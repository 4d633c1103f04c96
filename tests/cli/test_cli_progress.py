"""Progress on a terminal: a line that renews itself and never grows past the edge, where it would stay behind."""

import io
import sys

import pytest

from lightwell.cli import progress
from lightwell.cli.common import show_json
from lightwell.runtime.observer import StepReport
from lightwell.show.terminal import visible_width

REPORT = StepReport(
    step=1234, steps=5678, loss=3.123, gradient_norm=1.0, lr_scale=1.0, tokens=10**6,
    tokens_per_second=12_345.0, mfu=0.45, seconds_left=130.0,
)  # fmt: skip


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_line_is_cut_at_the_edge_and_says_the_time_left_first(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = progress.TrainingProgress(terminal=True)
    shown.after_evaluation(1000, {"heldout.bits_per_byte": 1.234})
    shown.after_step(REPORT)
    line = capsys.readouterr().err.removeprefix("\r\x1b[K")
    assert visible_width(line) < columns
    assert ("2 min 10 s left" in line) == (columns >= 40)
    assert ("45% of peak" in line) == (columns == 200)


class Closed(io.StringIO):
    tried = 0

    def write(self, text):
        self.tried += 1
        raise BrokenPipeError


def test_a_reader_that_is_gone_does_not_end_a_training(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Closed())
    for terminal in (True, False):
        shown = progress.TrainingProgress(terminal=terminal)
        tried = sys.stderr.tried
        shown.after_step(REPORT)
        shown.note("saved")
        shown.at_end()
        assert sys.stderr.tried == tried + (3 if terminal else 2)


def test_a_number_that_is_none_is_null(capsys):
    show_json({"error": float("inf"), "rows": [{"loss": float("nan")}, 1.5]})
    assert capsys.readouterr().out == '{"error": null, "rows": [{"loss": null}, 1.5]}\n'
