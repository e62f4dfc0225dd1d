"""Test resuming at any step on any other cluster: the same batches, nothing read twice."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import build_train_loader
from pipeline.data.loading import sample_order as order_module
from pipeline.data.loading.rank_share import rank_positions
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.data.shards import reader as shards_module
from pipeline.data.shards.reader import BLOCK, ShardSet
from pipeline.errors import UserError

OPTIONS = {
    "data.crop": 0.5,
    "data.zoom_out": 0.5,
    "data.photometric": 0.5,
    "data.parts": 3,
    "data.window": 1,
    "train.epochs": 2.2,
}
STEPS = 7  # ceil(2.2 * 23 / 8)


@pytest.fixture(params=["whole", "windows"])
def regime(request, monkeypatch):
    if request.param == "windows":
        monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
    return request.param


def rows(batches) -> list[tuple]:
    """Return every image with everything that is learned from it."""
    return [
        (
            image_id,
            batch.images[i].numpy().tobytes(),
            batch.boxes[i][batch.labels[i] >= 0].numpy().tobytes(),
            batch.labels[i][batch.labels[i] >= 0].tolist(),
        )
        for batch in batches
        for i, image_id in enumerate(batch.image_ids)
    ]


def global_batches(uri, config, world_size, start, stop) -> list[list[tuple]]:
    """Return the images of steps ``start`` to ``stop`` over all ranks, one sorted list per step."""
    ranks = [
        list(build_train_loader(uri, config, rank, world_size, start)) for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {STEPS - start}
    return [
        sorted(row for batches in ranks for row in rows([batches[step - start]]))
        for step in range(start, stop)
    ]


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stop=st.integers(0, STEPS), before=st.integers(1, 8), after=st.integers(1, 8))
def test_batches_are_the_same_for_any_step_and_any_two_world_sizes(
    scenes, make_config, regime, stop, before, after
):
    config = make_config(**OPTIONS)
    whole = global_batches(scenes, config, 1, 0, STEPS)
    first = global_batches(scenes, config, before, 0, stop)
    assert first + global_batches(scenes, config, after, stop, STEPS) == whole


def test_batches_are_the_same_for_other_numbers_of_loader_processes(scenes, make_config, regime):
    def images(workers: int, start: int) -> list[tuple]:
        config = make_config(**OPTIONS, **{"data.loader_workers": workers, "data.prefetch": 1})
        return rows(build_train_loader(scenes, config, 0, 1, start))

    whole = images(0, 0)
    assert images(2, 3) == images(3, 3) == whole[3 * 8 :]


@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_resume_reads_only_the_bytes_of_the_remaining_samples(
    scenes, make_config, monkeypatch, regime, start
):
    read: list[tuple[str, int, int]] = []
    original = os.pread

    def pread(descriptor: int, size: int, at: int) -> bytes:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        read.append((os.path.basename(path), at, at + size))
        return original(descriptor, size, at)

    config = make_config(**OPTIONS)
    loader = build_train_loader(scenes, config, 1, 2, start)
    monkeypatch.setattr(shards_module.os, "pread", pread)
    list(loader)
    shards = ShardSet(scenes)
    order = SampleOrder([s.samples for s in shards.manifest.shards], config.train.seed, 3, 1)
    expected = []
    positions = (rank_positions(order, step, 8, 1, 2) for step in range(start, STEPS))
    for t in itertools.chain.from_iterable(positions):
        index, _ = order.sample(t)
        number = shards.shard_of(index)
        name = shards.manifest.shards[number].name
        offsets = np.fromfile(f"{scenes}/{name.replace('.tar', '.index')}", "<i8").reshape(-1, 4)
        image_at, _, json_at, json_size = offsets[index - 5 * number].tolist()
        expected.append((name, image_at - BLOCK, json_at + json_size))
    assert read == expected


def test_resume_fetches_no_shard_that_was_finished(scenes, make_config, monkeypatch, tmp_path):
    """Of a remote set, only the shards of the remaining windows are fetched."""
    monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
    options = {**OPTIONS, "data.parts": 1, "train.epochs": 1, "data.cache": str(tmp_path)}
    config = make_config(**options)
    loader = build_train_loader(f"local://{scenes}", config, 0, 1, start_step=2)
    list(loader)
    shards = ShardSet(scenes)
    order = SampleOrder([s.samples for s in shards.manifest.shards], config.train.seed, 1, 1)
    left = {shards.shard_of(order.sample(t)[0]) for t in range(16, 24)}
    ahead = set(order.shards_of(order.next_window(order.window_at(23))))
    fetched = {path.stem for path in tmp_path.glob("*.tar")}
    names = [shard.sha256 for shard in shards.manifest.shards]
    assert {names[n] for n in left} <= fetched <= {names[n] for n in left | ahead}
    assert len(fetched) < 5


def test_cache_below_the_largest_shard_is_an_error(scenes, make_config, tmp_path):
    config = make_config(**OPTIONS, **{"data.cache": str(tmp_path), "data.cache_gib": 1e-6})
    with pytest.raises(UserError, match=r"data\.cache_gib 1e-06 cannot hold the largest .* raise"):
        build_train_loader(f"local://{scenes}", config, 0, 1)
    build_train_loader(scenes, config, 0, 1)  # a folder needs no cache


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_below_the_working_set_is_slow_and_reads_the_same(
    scenes, make_config, regime, tmp_path, caplog, workers
):
    shards = ShardSet(scenes).manifest.shards
    limit = 1.2 * max(shard.bytes + 200 for shard in shards) / 2**30
    cache = {"data.cache": str(tmp_path), "data.cache_gib": limit, "data.loader_workers": workers}
    config = make_config(**{**OPTIONS, **cache})
    loader = build_train_loader(f"local://{scenes}", config, 0, 1)
    count = 5 if regime == "whole" else 3
    assert f"too small for local://{scenes}: a node reads {count} of its 5 shards" in caplog.text
    assert rows(loader) == rows(build_train_loader(scenes, config, 0, 1))


def test_cache_without_space_to_prefetch_causes_a_warning(
    scenes, make_config, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(order_module, "MAX_PERMUTED_WHOLE", 0)
    shards = ShardSet(scenes).manifest.shards
    limit = 3.2 * max(shard.bytes + 200 for shard in shards) / 2**30
    options = {"data.cache": str(tmp_path), "data.cache_gib": limit}
    config = make_config(**OPTIONS, **options)
    loader = build_train_loader(f"local://{scenes}", config, 0, 1)
    assert "but not twice that" in caplog.text
    assert rows(loader) == rows(build_train_loader(scenes, config, 0, 1))
