"""For all tests: one thread per process, since several run side by side, and threads that sleep while they wait; and
the same examples in each run of a property, so that a red test is red for whoever looks."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

settings.register_profile("the same each time", derandomize=True)
settings.load_profile("the same each time")


@pytest.fixture(autouse=True)
def alike_in_each_run() -> None:
    """Models made without a seed begin alike, whatever ran before; and a command that ran in this process left no more
    threads behind, which would add in another order."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
