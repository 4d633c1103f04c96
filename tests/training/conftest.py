"""What tests of training share: our own short text as a prepared dataset, made once."""

from pathlib import Path

import pytest

from lightwell.data.dataset import Dataset
from lightwell.data.prepare import prepare

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    return prepare([GOLDEN / "well.txt"], folder, tokenizer="bytes", val=[GOLDEN / "well-held-out.txt"])
