"""Batches: each token a target once per epoch, any number of processes, the same for the same step."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.data.batches import IGNORE, Batches, permute
from lightwell.data.shards import TokenStream
from lightwell.errors import DataError


def stream_of(lengths, separator=9999, shards=1):
    """Documents of some lengths whose ids are their places in the stream, so that every id says where it is from."""
    total = sum(lengths) + len(lengths)
    ids = np.arange(total, dtype=np.uint16)
    starts = np.cumsum([0, *(length + 1 for length in lengths[:-1])]).astype(np.uint64)
    cuts = [total * k // shards for k in range(shards + 1)]
    pieces = [ids[a:b] for a, b in pairwise(cuts)]
    inside = [starts[(starts >= a) & (starts < b)] - np.uint64(a) for a, b in pairwise(cuts)]
    return TokenStream(pieces, inside, n_bytes=total)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 5))
def test_permute_is_a_permutation(n, seed, epoch):
    assert sorted(permute(np.arange(n), n, seed, epoch)) == list(range(n))


def test_permute_differs_by_seed_and_epoch_and_mixes():
    orders = [tuple(permute(np.arange(1000), 1000, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    for order in orders:
        fixed = sum(place == window for place, window in enumerate(order))
        neighbours = sum(b - a == 1 for a, b in pairwise(order))
        assert fixed < 10  # 1 expected of a random order
        assert neighbours < 10


def test_permute_first_places_are_uniform():
    firsts = [int(permute(np.array([0]), 10, seed, 0)[0]) for seed in range(5000)]
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 33  # chi squared, 9 degrees of freedom: p = 0.0001


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 0),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_each_token_is_a_target_once_per_epoch(lengths, context_length, batch_size, seed, shards):
    stream = stream_of(lengths, shards=shards)
    batches = Batches(stream, batch_size, context_length, seed)
    epochs, ids_ok = 3, True
    targets = []
    for step in range(-(-batches.n_windows * epochs // batch_size)):
        batch = batches.batch(step)
        assert batch.ids.shape == batch.targets.shape == batch.documents.shape == (batch_size, context_length)
        assert batch.ids.dtype == batch.targets.dtype == batch.documents.dtype == torch.int64
        counted = batch.targets != IGNORE
        ids_ok &= bool((batch.targets[counted] == batch.ids[counted] + 1).all())
        targets += [row[row != IGNORE].tolist() for row in batch.targets]
    assert ids_ok
    for epoch in range(epochs):
        rows = targets[epoch * batches.n_windows : (epoch + 1) * batches.n_windows]
        assert sorted(chain(*rows)) == list(range(1, len(stream)))


@settings(deadline=None)
@given(st.integers(1, 13), st.integers(1, 8), st.integers(0, 50))
def test_any_number_of_processes_sees_the_same(batch_size, world, step):
    batches = Batches(stream_of([50, 3, 70]), batch_size, 4, seed=1)
    whole = batches.batch(step)
    parts = [batches.batch(step, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert torch.equal(torch.cat([part.documents for part in parts]), whole.documents)
    assert [row for part in parts for row in part.rows] == list(range(batch_size))


def test_document_numbers():
    stream = stream_of([3, 0, 5, 2])  # starts at 0, 4, 5, 11
    batches = Batches(stream, 1, 6, seed=0)
    seen = {}
    for step in range(3):
        batch = batches.batch(step)
        seen.update((i, d) for i, d in zip(batch.ids[0].tolist(), batch.documents[0].tolist()) if i not in seen)
    assert [seen[place] for place in range(14)] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]


def test_same_step_same_batch_and_epochs_differ():
    batches, again = (Batches(stream_of([400]), 10, 4, seed=3) for _ in range(2))
    assert torch.equal(batches.batch(7).ids, again.batch(7).ids)
    assert not torch.equal(batches.batch(0).ids, batches.batch(int(batches.steps_per_epoch)).ids)
    assert batches.steps_per_epoch == 100 / 10


def test_huge_step_numbers():
    batches = Batches(stream_of([400]), 10, 4, seed=3)
    assert batches.batch(10**12).ids.shape == (10, 4)


def test_padding_uses_the_separator():
    documents = [np.array([1, 2, 3])]
    batch = Batches(TokenStream.from_documents(documents, separator_id=7, n_bytes=3), 1, 5, seed=0).batch(0)
    assert batch.ids.tolist() == [[7, 1, 2, 3, 7]]
    assert batch.targets.tolist() == [[1, 2, 3, IGNORE, IGNORE]]


def test_nothing_to_predict():
    with pytest.raises(DataError, match="expected at least 2 tokens"):
        Batches(TokenStream.from_documents([np.array([], dtype=int)], 7, 0), 1, 5, seed=0)
