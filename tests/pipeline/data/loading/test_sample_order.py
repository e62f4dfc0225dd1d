"""Test the global order against its formula, written out plainly."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.keyed_rng import permute
from pipeline.data.loading import sample_order as order_module
from pipeline.data.loading.sample_order import SampleOrder, epoch_end, total_steps

counts_lists = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@pytest.fixture(params=["whole", "windows"])
def regime(request, monkeypatch):
    """Select one of both ways of shuffling, on sets small enough to test many."""
    if request.param == "windows":
        monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)


def stream(order: SampleOrder, begin: int, end: int) -> list[tuple[int, int]]:
    return [order.sample(t) for t in range(begin, end)]


def check_each_sample_occurs_once(counts, seed, parts, window):
    order = SampleOrder(counts, seed, parts, window)
    for epoch in range(3):
        got = stream(order, epoch * order.n, (epoch + 1) * order.n)
        assert sorted(got) == [(i, epoch) for i in range(order.n)]


@given(counts_lists, st.integers(0, 2**31 - 1), st.integers(1, 70), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_sample_occurs_once_per_epoch_when_permuted_whole(counts, seed, parts, window):
    check_each_sample_occurs_once(counts, seed, parts, window)


@given(counts_lists, st.integers(0, 2**31 - 1), st.integers(1, 70), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_sample_occurs_once_per_epoch_in_windows(counts, seed, parts, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
        check_each_sample_occurs_once(counts, seed, parts, window)


def test_small_sets_follow_the_formula():
    n, parts, seed = 23, 4, 9
    order = SampleOrder([10, 13], seed, parts)
    for t in range(3 * n):
        e, i = divmod(t, n)
        o = permute(n, "order", seed, e)
        assert order.sample(t) == ([o[p::parts] for p in range(parts)][i % parts][i // parts], e)


def test_windows_hold_samples_of_few_shards_and_parts_follow_the_formula(monkeypatch):
    monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
    counts, parts, window, seed = [7, 5, 9, 6, 8, 4, 10, 3], 3, 2, 1
    order, n = SampleOrder(counts, seed, parts, window), sum(counts)
    starts = np.cumsum(counts) - counts
    row = [
        (s, starts[s] + k) for s in permute(len(counts), "order", seed, 0) for k in range(counts[s])
    ]
    cuts = np.cumsum([0] + [n // parts + (p < n % parts) for p in range(parts)])
    for p in range(parts):
        part = row[cuts[p] : cuts[p + 1]]
        shards = list(dict.fromkeys(s for s, _ in part))
        expected = []
        for number, first in enumerate(range(0, len(shards), window)):
            block = [i for s, i in part if s in shards[first : first + window]]
            expected += [block[k] for k in permute(len(block), "windows", seed, 0, p, number)]
        assert [order.sample(j * parts + p)[0] for j in range(len(part))] == expected


def test_epochs_and_seeds_differ(regime):
    first, second = (stream(SampleOrder([30] * 8, 0), e * 240, (e + 1) * 240) for e in (0, 1))
    other = stream(SampleOrder([30] * 8, 1), 0, 240)
    assert [i for i, _ in first] != [i for i, _ in second] and first != other


def test_order_never_changes(regime):
    # Recorded: another NumPy, machine or release must give the same, or runs cannot be resumed.
    got = [i for i, _ in stream(SampleOrder([6, 6, 6], seed=3, parts=4, window=2), 0, 9)]
    whole = order_module.MAX_PERMUTED_WHOLE > 0
    assert got == (WHOLE_STREAM if whole else WINDOW_STREAM)


WHOLE_STREAM = [17, 8, 1, 10, 13, 9, 12, 3, 16]
WINDOW_STREAM = [10, 13, 16, 5, 7, 12, 1, 4, 9]


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 5))
def test_epoch_ends_at_the_first_step_that_completes_it(n, batch, epochs):
    ends = [epoch_end(e, n, batch) for e in range(epochs)]
    assert all((end - 1) * batch < (e + 1) * n <= end * batch for e, end in enumerate(ends))
    assert total_steps(epochs, n, batch) == ends[-1]


def test_steps_of_fractional_epochs_are_rounded_up():
    assert total_steps(0.5, 100, 8) == 7
    assert total_steps(0.1 + 0.2, 100, 10) == 3


def test_large_set_plans_only_the_windows_that_are_read():
    order = SampleOrder([1000] * 2000, seed=0, parts=64, window=4)
    got = [order.sample(t)[0] for t in range(1_500_000, 1_500_256)]
    assert len(set(got)) == 256 and len(order._epochs[0]._windows) == 64


def test_next_window_is_the_next_of_its_part_in_the_stream(regime):
    order = SampleOrder([7, 5, 9, 6, 8, 4, 10, 3], 1, parts=3, window=2)
    last: dict[int, object] = {}
    for t in range(3 * order.n):
        at = order.window_at(t)
        if at.part in last and last[at.part] != at:
            assert order.next_window(last[at.part]) == at
        last[at.part] = at


def test_shards_of_a_set_permuted_whole_are_ordered_by_first_use():
    counts = [6, 3, 8, 5]
    order, ends = SampleOrder(counts, seed=4), np.cumsum(counts)
    for start in (0, 9, 22, 30):
        window = order.window_at(start)
        rest = range(start, (window.epoch + 1) * order.n)
        needed = dict.fromkeys(
            int(np.searchsorted(ends, order.sample(t)[0], "right")) for t in rest
        )
        found = order.shards_of(window, start)
        assert found[: len(needed)] == list(needed) and sorted(found) == [0, 1, 2, 3]


def test_partners_are_from_the_same_window(monkeypatch):
    monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
    counts = [7, 5, 9, 6, 8, 4, 10, 3]
    order, ends = SampleOrder(counts, 1, 3, 2), np.cumsum(counts)
    sizes = Counter(order.window_at(t) for t in range(2 * order.n))
    for t in range(2 * order.n):
        shards = set(order.shards_of(order.window_at(t)))
        partners = {order.partner(t, draw) for draw in np.linspace(0, 1, 50, endpoint=False)}
        assert order.sample(t)[0] in partners
        assert len(partners) > 1 or sizes[order.window_at(t)] == 1
        assert {int(np.searchsorted(ends, p, side="right")) for p in partners} <= shards
