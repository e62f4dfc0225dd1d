"""Images of rare classes are drawn more often, in the same order on every cluster."""

import json
from fractions import Fraction
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import build_train_loader, load_manifest
from pipeline.data.keyed_rng import bit_generator, permute
from pipeline.data.loading import sample_order as order_module
from pipeline.data.loading.repeat_sampling import UNIT, describe_repeats, repeat_weights
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.data.shards.image_classes import encode_image, parse_image_classes
from pipeline.data.shards.reader import ShardSet
from pipeline.errors import UserError
from pipeline.training.fit import check_data

COUNTS = [7, 5, 9, 6, 8, 4, 10, 3]
N = sum(COUNTS)


@pytest.fixture(params=["whole", "windows"])
def regime(request, monkeypatch):
    """Select one of both ways of shuffling."""
    if request.param == "windows":
        monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
    return request.param


def uneven_weights(seed: int = 0, n: int = N) -> np.ndarray:
    """Return weights up to 40, with shards of which nothing may be drawn in an epoch."""
    factors = 1 + np.random.default_rng(seed).pareto(1.5, n).clip(0, 39)
    factors[:7], factors[-3:] = 40, 1
    return (factors * UNIT).astype(np.uint32)


def epoch(order: SampleOrder, e: int) -> list[int]:
    return [order.sample(t)[0] for t in range(e * order.n, (e + 1) * order.n)]


def test_weights_follow_the_formula():
    images = [[0], [0, 1], [], [0, 2], [0, 1], [0], [0], [1], [0], [0]]
    data = b"".join(encode_image(labels, 4) for labels in images)
    weights = repeat_weights(*parse_image_classes(data, 4, 10), 4, 0.5)
    fractions = [0.8, 0.3, 0.1, 0.0]
    factors = [max([1.0, *(sqrt(0.5 / fractions[c]) for c in row)]) for row in images]
    assert weights.tolist() == [round(UNIT * factor) for factor in factors]
    assert len(set(weights.tolist())) == 3


def check_draws(counts, seed, parts, window):
    n = sum(counts)
    weights = uneven_weights(seed, max(n, 10))[:n]
    order, total = SampleOrder(counts, seed, parts, window, weights), int(weights.sum())
    for e in range(3):
        drawn, repeats = epoch(order, e), [order.repeat(t) for t in range(e * n, (e + 1) * n)]
        times = np.bincount(drawn, minlength=n)
        for count, weight in zip(times.tolist(), weights.tolist(), strict=True):
            assert abs(count - Fraction(n * weight, total)) < 1
        pairs = sorted(zip(drawn, repeats, strict=True))
        assert pairs == [(i, repeat) for i in range(n) for repeat in range(times[i])]


any_order = given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 2**31 - 1),
    st.integers(1, 70),
    st.integers(1, 5),
)


@any_order
@settings(max_examples=30, deadline=None)
def test_epoch_has_n_draws_in_proportion_when_permuted_whole(counts, seed, parts, window):
    check_draws(counts, seed, parts, window)


@any_order
@settings(max_examples=30, deadline=None)
def test_epoch_has_n_draws_in_proportion_in_windows(counts, seed, parts, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
        check_draws(counts, seed, parts, window)


def test_draws_follow_the_formula(regime):
    weights, seed, e = uneven_weights(), 5, 2
    w, total = weights.tolist(), int(weights.sum())
    starts = np.cumsum(COUNTS) - COUNTS
    shards = [(0, 0, N)]
    if regime == "windows":
        shards = [(s, starts[s], COUNTS[s]) for s in permute(len(COUNTS), "order", seed, e)]
    row = [first + i for s, first, n in shards for i in permute(n, "repeat", seed, e, s)]
    offset = int(bit_generator("repeat", seed, e).random_raw()) % total
    expected, place, end = [], -1, 0
    for j in range(N):
        while (j * total + offset) // N >= end:
            place += 1
            end += w[row[place]]
        expected.append(row[place])
    assert sorted(epoch(SampleOrder(COUNTS, seed, 3, 2, weights), e)) == sorted(expected)
    assert max(map(expected.count, expected)) > 2


def test_images_are_drawn_as_often_as_their_weights_say_on_average(regime):
    weights = uneven_weights()
    order, epochs = SampleOrder(COUNTS, 1, 3, 2, weights), 300
    times = sum(np.bincount(epoch(order, e), minlength=N) for e in range(epochs)) / epochs
    assert np.abs(times - N * weights / weights.sum()).max() < 0.13  # 4 standard errors of a half
    assert len({tuple(sorted(epoch(order, e))) for e in range(20)}) == 20


def test_equal_weights_change_nothing(regime):
    plain, equal = (
        SampleOrder(COUNTS, 3, 4, 2, weights) for weights in (None, np.full(N, UNIT, np.uint32))
    )
    assert [plain.sample(t) for t in range(3 * N)] == [equal.sample(t) for t in range(3 * N)]
    assert not any(equal.repeat(t) for t in range(3 * N))


def test_order_with_repeats_never_changes(regime):
    # Recorded: another NumPy, machine or release must give the same, or runs cannot be resumed.
    weights = np.array([1, 3, 1, 1, 9, 1, 1, 1, 2, 1, 1, 1], np.uint32) * UNIT
    order = SampleOrder([4, 4, 4], seed=3, parts=3, window=2, weights=weights)
    assert epoch(order, 1) == (WHOLE_EPOCH if regime == "whole" else WINDOW_EPOCH)


WHOLE_EPOCH = [4, 9, 10, 4, 4, 1, 1, 8, 11, 4, 4, 3]
WINDOW_EPOCH = [1, 4, 8, 3, 4, 5, 2, 4, 4, 1, 4, 9]


def test_windows_and_partners_need_the_shards_that_are_prefetched(regime):
    order, ends = SampleOrder(COUNTS, 1, 3, 2, uneven_weights()), np.cumsum(COUNTS)
    last = {}
    for t in range(3 * N):
        window = order.window_at(t)
        shards = order.shards_of(window, t)
        needed = {order.sample(t)[0], *(order.partner(t, x) for x in np.linspace(0, 0.99, 20))}
        assert {int(np.searchsorted(ends, i, side="right")) for i in needed} <= set(shards)
        if window.part in last and last[window.part] != window:
            assert order.next_window(last[window.part]) == window
        last[window.part] = window
    if regime == "windows":  # without shards of which nothing is drawn in between
        drawn = {int(np.searchsorted(ends, i, side="right")) for i in epoch(order, 0)}
        windows = {order.window_at(t) for t in range(N)}
        assert {s for w in windows for s in order.shards_of(w)} == drawn < set(range(len(COUNTS)))


def test_large_set_computes_only_the_shards_that_are_read():
    weights = np.tile(uneven_weights(n=1000), 2000)
    order = SampleOrder([1000] * 2000, seed=0, parts=64, window=4, weights=weights)
    assert len({order.sample(t)[0] for t in range(1_500_000, 1_500_256)}) > 200
    assert len(order._epochs[0]._windows) == 64


RARE = {"data.repeat_threshold": 1.0, "data.parts": 3, "data.window": 1, "train.epochs": 2.2}


def rows(loader) -> list[list[tuple[str, bytes, bytes]]]:
    """Return the images of each step, with their boxes."""
    return [
        [
            (
                image_id,
                batch.images[i].numpy().tobytes(),
                batch.boxes[i][batch.labels[i] >= 0].numpy().tobytes(),
            )
            for i, image_id in enumerate(batch.image_ids)
        ]
        for batch in loader
    ]


def test_batches_do_not_depend_on_ranks_or_restarts(regime, scenes, make_config):
    mix = {"data.mosaic": 0.5, "data.mixup": 0.5, "data.crop": 0.5}
    config = make_config(**RARE, **mix)
    steps = rows(build_train_loader(scenes, config, 0, 1))
    assert len(steps) == 7
    ranks = [rows(build_train_loader(scenes, config, rank, 3, 2)) for rank in range(3)]
    assert [sorted(row for rank in step for row in rank) for step in zip(*ranks, strict=True)] == [
        sorted(step) for step in steps[2:]
    ]


def test_repeats_of_an_image_are_augmented_differently(regime, scenes, make_config):
    config = make_config(**{**RARE, "train.epochs": 5, "data.zoom_out": 1.0})
    images = [row for step in rows(build_train_loader(scenes, config, 0, 1)) for row in step]
    epochs = [images[first : first + 23] for first in range(0, 5 * 23, 23)]
    repeats = sum(23 - len({image_id for image_id, *_ in epoch}) for epoch in epochs)
    assert repeats >= 3 and all(len(set(epoch)) == 23 for epoch in epochs)


def test_set_without_rare_classes_is_read_as_without_the_option(scenes, make_config):
    order = build_train_loader(scenes, make_config(**{"data.repeat_threshold": 0.05}), 0, 1).order
    assert order.weights is None
    assert describe_repeats(None, 0.05).startswith("data.repeat_threshold 0.05 changes nothing: ")


def test_line_states_how_often_images_are_drawn():
    weights = np.array([1, 1, 1, 5], np.uint32) * UNIT
    assert describe_repeats(weights, 0.1) == (
        "data.repeat_threshold 0.1: images are drawn 0.50 to 2.50 times per epoch; 25.0 % have a "
        "class below the threshold"
    )


def test_set_of_an_earlier_version_is_rejected_with_the_remedy(scenes, make_config, tmp_path):
    for path in Path(scenes).iterdir():
        if path.suffix != ".bin":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tree = json.loads((tmp_path / "manifest.json").read_text())
    del tree["image_classes"]
    (tmp_path / "manifest.json").write_text(json.dumps({**tree, "format_version": 4}))
    uri, plain = str(tmp_path), make_config(**{"data.train": str(tmp_path), "train.epochs": 1})
    assert check_data(plain)["train"] == load_manifest(uri)
    assert len(list(build_train_loader(uri, plain, 0, 1))) == 3
    config = plain.replace({"data.repeat_threshold": 0.1})
    remedy = rf"without the classes of each image, .* python -m jobs\.shards upgrade {uri}"
    with pytest.raises(UserError, match=remedy):
        check_data(config)
    with pytest.raises(UserError, match=remedy):
        build_train_loader(ShardSet(uri), config, 0, 1)
