"""As many threads as the scheduler and a container allow."""

import os

import pytest
import torch

from lightwell.runtime import threads


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
    ids=["one and a half", "a fifth", "no limit", "more than there are", "version 1", "version 1, no limit", "none"],
)
def test_a_containers_quota_is_heeded(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert threads.allowed_cpus(tmp_path) == expected


def test_no_more_threads_than_that_and_no_more_than_before(monkeypatch):
    torch.set_num_threads(2)
    for allowed, expected in ((8, 2), (1, 1), (2, 1)):
        monkeypatch.setattr(threads, "allowed_cpus", lambda allowed=allowed: allowed)
        threads.limit_threads()
        assert torch.get_num_threads() == expected
