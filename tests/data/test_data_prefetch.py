"""Prefetching changes when a batch is made, never what is in it."""

import threading

import numpy as np
import pytest
import torch

from lightwell.data.batches import Batches
from lightwell.data.prefetch import Prefetch
from lightwell.data.shards import TokenStream


@pytest.fixture
def batches():
    return Batches(TokenStream.from_documents([np.arange(500) % 50], 51, 500), 6, 8, seed=2)


def same(a, b):
    return torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets) and torch.equal(a.documents, b.documents)


def test_the_same_batches_in_any_order(batches):
    with Prefetch(batches) as ahead:
        for step in (0, 1, 2, 7, 8, 3, 3, 4):
            assert same(ahead.batch(step), batches.batch(step))
            part = ahead.batch(step, rank=1, world=3)
            assert same(part, batches.batch(step, rank=1, world=3))
            assert part.rows == range(2, 4)


def test_the_next_batch_is_made_before_it_is_asked_for(batches, monkeypatch):
    made, changed = [], threading.Event()
    real = batches.batch

    def batch(step, rank=0, world=1):
        made.append((step, threading.current_thread().name))
        if step == 1:
            changed.set()
        return real(step, rank, world)

    monkeypatch.setattr(batches, "batch", batch)
    with Prefetch(batches) as ahead:
        ahead.batch(0)
        assert changed.wait(5)
        ahead.batch(1)
    assert [step for step, _ in made].count(1) == 1
    assert all(name.startswith("batches") for _, name in made)


def test_errors_in_the_thread_reach_the_caller(batches, monkeypatch):
    def broken(*rest):
        raise OSError("the disk is gone")

    with Prefetch(batches) as ahead:
        ahead.batch(0)
        ahead.batch(1)
        monkeypatch.setattr(batches, "batch", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            [ahead.batch(step) for step in (5, 6)]


def test_no_thread_is_left(batches):
    with Prefetch(batches) as ahead:
        ahead.batch(0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_memory(batches):
    with Prefetch(batches, pin=True) as ahead:
        batch = ahead.batch(0)
        assert batch.ids.is_pinned()
        assert torch.equal(batch.ids.to("cuda", non_blocking=True).cpu(), batches.batch(0).ids)
