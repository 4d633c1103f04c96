"""The planner's constants are those that the recorded runs give, and the law is fitted in the form that predicts."""

from pathlib import Path

import pytest

from lightwell.planner.predict import LEAST_LONG, LONG, predict_bits_per_byte
from lightwell.planner.text import TextStatistics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def law(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import law

    return law


@pytest.fixture
def rows(law):
    return [row for row in law.read(BENCHMARKS / "law_rows.jsonl") if row["unique_tokens"] >= LEAST_LONG]


def test_the_constants_are_those_of_the_rows(law, rows):
    assert len(rows) > 70
    assert law.as_law(law.fitted(rows)) == pytest.approx(LONG, rel=0.05)  # other machines add in another order


def test_what_is_fitted_is_what_predicts(law, rows):
    import torch

    constants = torch.tensor(law.as_constants(LONG), dtype=torch.float64)
    for row, fitted in zip(rows, law.law(constants, rows).tolist()):
        told = ("difficulty", "copying", "vocabulary", "overlap", "far", "farther", "phrases", "guessing")
        text = TextStatistics(row["unique_tokens"], **{name: row[name] for name in told})
        predicted = predict_bits_per_byte(row["in_blocks"], row["tokens"], text, law.context_of(row))
        assert predicted == pytest.approx(fitted, rel=1e-6)
