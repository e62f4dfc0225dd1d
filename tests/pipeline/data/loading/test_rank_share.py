"""Test how ranks divide each global batch: evenly, and each with few shards."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.loading import sample_order as order_module
from pipeline.data.loading.rank_share import (
    parts_at_a_time,
    position_ranks,
    rank_positions,
    working_set,
)
from pipeline.data.loading.sample_order import SampleOrder, total_steps

RANKS_PER_NODE = 8
counts_lists = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(
    n=st.integers(1, 300),
    parts=st.integers(1, 40),
    batch=st.integers(1, 100),
    world_size=st.integers(1, 50),
    first=st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_shares_divide_each_batch_and_differ_by_at_most_one(n, parts, batch, world_size, first):
    world_size = min(world_size, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
        order = SampleOrder([n], 0, parts)
        for step in range(first, first + 4):
            shares = [
                rank_positions(order, step, batch, rank, world_size) for rank in range(world_size)
            ]
            assert sorted(t for s in shares for t in s) == [
                *range(step * batch, (step + 1) * batch)
            ]
            assert all(list(s) == sorted(s) for s in shares)
            sizes = {len(s) for s in shares}
            assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
            ranks = position_ranks(order, step, batch, world_size).tolist()
            assert all(ranks[t - step * batch] == r for r, s in enumerate(shares) for t in s)


@given(
    n=st.integers(1, 300),
    world_size=st.integers(1, 12),
    multiple=st.integers(1, 6),
    batch=st.integers(12, 100),
    step=st.integers(0, 30),
)
@settings(deadline=None)
def test_ranks_take_turns_if_they_divide_the_parts(n, world_size, multiple, batch, step):
    turns = np.arange(step * batch, (step + 1) * batch) % world_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
        order = SampleOrder([n], 0, multiple * world_size)
        assert position_ranks(order, step, batch, world_size).tolist() == turns.tolist()


def test_ranks_take_turns_in_a_set_that_is_permuted_whole():
    order = SampleOrder([100], 0, parts=64)
    shares = [rank_positions(order, 3, 20, rank, 7) for rank in range(7)]
    assert all(t % 7 == rank for rank, share in enumerate(shares) for t in share)
    assert position_ranks(order, 3, 20, 7).tolist() == [t % 7 for t in range(60, 80)]


@given(st.integers(1, 60), st.integers(1, 32), st.integers(1, 32), st.floats(0.1, 3))
@settings(deadline=None)
def test_all_ranks_make_the_same_steps_of_at_least_one_sample(n, batch, world_size, epochs):
    world_size = min(world_size, batch)
    order, steps = SampleOrder([n], seed=0), total_steps(epochs, n, batch)
    read = []
    for step in range(steps):
        shares = [
            rank_positions(order, step, batch, rank, world_size) for rank in range(world_size)
        ]
        assert all(shares)
        read += sorted(t for positions in shares for t in positions)
    assert read == list(range(steps * batch))  # nothing dropped, repeated or padded
    counts = Counter(order.sample(t) for t in range(min(len(read), 200)))
    assert set(counts.values()) <= {1}


def parts_by_reader(
    parts: int, batch: int, world_size: int, ranks_per_reader: int, steps: range
) -> dict[int, set[int]]:
    """Return the parts that each rank, or node of several ranks, reads in steps of one epoch."""
    order = SampleOrder([10**9], 0, parts)
    found: dict[int, set[int]] = defaultdict(set)
    for step in steps:
        of_position = np.arange(step * batch, (step + 1) * batch) % parts
        readers = position_ranks(order, step, batch, world_size) // ranks_per_reader
        for reader, part in zip(readers.tolist(), of_position.tolist(), strict=True):
            found[reader].add(part)
    return found


@pytest.mark.parametrize(
    ("parts", "batch", "world_sizes"),
    [(64, 512, (64, 63, 62, 60, 56, 33, 32, 31, 3)), (256, 2048, (256, 255, 248, 200))],
)
def test_each_part_is_read_by_about_one_node_with_any_number_of_ranks(parts, batch, world_sizes):
    """The cluster starts with one rank per part and loses some."""
    for world_size in world_sizes:
        by_node = parts_by_reader(parts, batch, world_size, RANKS_PER_NODE, range(1000, 1016))
        assert set().union(*by_node.values()) == set(range(parts))
        assert sum(map(len, by_node.values())) <= 1.04 * parts, world_size
        by_rank = parts_by_reader(parts, batch, world_size, 1, range(1000, 1004))
        assert sum(map(len, by_rank.values())) <= parts + world_size - 1
        if parts % world_size == 0:
            assert sum(map(len, by_rank.values())) == parts


def test_a_lost_rank_changes_no_part_of_the_other_ranks():
    before = parts_by_reader(64, 512, 64, 1, range(8))
    after = parts_by_reader(64, 512, 63, 1, range(8))
    assert all(before[rank] <= after[rank] <= before[rank] | {63} for rank in range(63))
    assert sum(63 in parts for parts in after.values()) == 8  # each takes one sample per batch


@given(
    parts=st.sampled_from([1, 2, 3, 8, 12, 48, 64]),
    world_size=st.integers(1, 70),
    ranks=st.integers(1, 8),
    batch=st.integers(1, 200),
    multiple=st.integers(0, 4),
    first=st.integers(0, 30),
)
@settings(deadline=None)
def test_a_node_reads_no_more_parts_at_a_time_than_counted(
    parts, world_size, ranks, batch, multiple, first
):
    batch = max(batch, world_size)
    if multiple:
        batch = parts * (multiple + world_size // parts)
    steps = range(first, first + 12)
    by_node = parts_by_reader(parts, batch, world_size, ranks, steps)
    order = SampleOrder([10**9], 0, parts)
    assert max(map(len, by_node.values())) <= parts_at_a_time(order, batch, world_size, ranks)


@given(
    counts=counts_lists,
    parts=st.integers(1, 6),
    window=st.integers(1, 4),
    world_size=st.integers(1, 8),
    ranks=st.integers(1, 8),
    batch=st.integers(8, 30),
)
@settings(max_examples=40, deadline=None)
def test_reads_stay_within_the_shards_of_windows_and_the_working_set(
    counts, parts, window, world_size, ranks, batch
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
        order = SampleOrder(counts, 5, parts, window)
        ends = np.cumsum(counts)
        ranks = min(ranks, world_size)
        present: dict[int, dict[int, set[int]]] = defaultdict(dict)  # by epoch and part
        for step in range(2 * order.n // batch):
            readers = position_ranks(order, step, batch, world_size).tolist()
            for t, reader in enumerate(readers, start=step * batch):
                at = order.window_at(t)
                shard = int(np.searchsorted(ends, order.sample(t)[0], side="right"))
                assert shard in order.shards_of(at)
                # A batch that contains the end of an epoch may add parts.
                if (
                    reader < ranks
                    and step * batch // order.n == ((step + 1) * batch - 1) // order.n
                ):
                    present[at.epoch][at.part] = set(order.shards_of(at))
                    read = set().union(*present[at.epoch].values())
                    assert len(read) <= working_set(order, batch, world_size, ranks)


def test_working_set_of_a_set_that_is_permuted_whole_is_the_set():
    assert working_set(SampleOrder([6, 3, 8, 5], seed=4), 8, 8, 1) == 4


def test_lost_ranks_hardly_enlarge_the_working_set_of_a_node():
    """With 256 parts in windows of 4 shards, a node of 8 ranks reads 32 shards at a time."""
    order = SampleOrder([1000] * 2560, 0, parts=256, window=4)
    sets = {w: working_set(order, 2048, w, RANKS_PER_NODE) for w in (256, 255, 248, 240)}
    assert sets == {256: 32, 255: 36, 248: 40, 240: 40}
