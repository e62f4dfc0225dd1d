"""The load of many nodes: few keys, through rank 0, without training or the run store."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.distributed import HashStore

from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.tracking import ClusterLoad, Tracker
from pipeline.tracking.system_metrics import SystemSampler
from pipeline.training.worker import cluster_load
from tests.pipeline.distributed.test_world import on_each_rank

PERIOD = 0.2


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.cluster_load.SAMPLE_SECONDS", PERIOD)


def wait_for(metrics: Callable[[], dict[str, float]], nodes: int) -> dict[str, float]:
    until = time.monotonic() + 20
    while (found := metrics()).get("system/nodes") != nodes:
        assert time.monotonic() < until, found
        time.sleep(PERIOD / 4)
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[ClusterLoad]]]:
    """Start nodes with the given loads, 8 ranks each."""
    started: list[ClusterLoad] = []

    def start(loads: list[dict[str, float]]) -> list[ClusterLoad]:
        store, senders = HashStore(), [8 * node for node in range(len(loads))]
        for rank, load in zip(senders, loads, strict=True):
            monkeypatch.setattr(SystemSampler, "load", lambda self: dict(self.fixed))
            monkeypatch.setattr(SystemSampler, "fixed", load, raising=False)
            node = ClusterLoad(store, rank, senders)
            assert node._sampler is not None
            node._sampler.fixed = load  # type: ignore[attr-defined]
            started.append(node)
        return started

    yield start
    for node in started:
        node.close()


def test_load_is_summarised_over_nodes(cluster: Any) -> None:
    loads = [{"cpu": 10.0}, {"cpu": 40.0, "gpu_0": 7.0}, {"cpu": 20.0}]
    main, *others = cluster(loads)
    assert wait_for(main.metrics, 3) == {
        "system/nodes": 3.0,
        "system/min/cpu": 10.0,
        "system/mean/cpu": 23.3,
        "system/max/cpu": 40.0,
        "system/min/gpu_0": 7.0,
        "system/mean/gpu_0": 7.0,
        "system/max/gpu_0": 7.0,
    }
    assert all(other.metrics() == {} for other in others)


def test_lost_node_is_left_out(cluster: Any) -> None:
    main, lost, _ = cluster([{"cpu": 10.0}, {"cpu": 40.0}, {"cpu": 20.0}])
    assert wait_for(main.metrics, 3)["system/max/cpu"] == 40.0
    lost.close()
    assert wait_for(main.metrics, 2)["system/max/cpu"] == 20.0


def test_number_of_keys_does_not_grow_with_nodes(cluster: Any) -> None:
    node = {"cpu": 1.0, **{f"gpu_{i}_{kind}": 1.0 for i in range(8) for kind in "abc"}}
    main, *_ = cluster([node] * 40)
    assert len(wait_for(main.metrics, 40)) == 1 + 3 * len(node)


def on_a_rank(limit: int) -> Callable[[World], Any]:
    config = Config.from_dict({"tracking": {"max_logged_nodes": limit}})

    def work(world: World) -> Any:
        load = cluster_load(config, world, first_of_node=world.rank != 1)
        if load is None:
            found = None
        elif not world.is_main:
            found = load.metrics()
        else:
            found = wait_for(load.metrics, 2)
        world.broadcast(None)
        return found

    return work


def test_ranks_share_the_load_of_more_nodes_than_the_limit() -> None:
    main, second_of_node, other = on_each_rank(on_a_rank(limit=1))
    assert 0 < main["system/min/system_memory_usage_percentage"] <= 100
    assert (second_of_node, other) == (None, {})
    assert on_each_rank(on_a_rank(limit=2)) == [None, None, None]


def test_tracker_logs_the_load_of_all_nodes(
    cluster: Any, uri: str, client: Any, run_id: str, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("pipeline.tracking.tracker._SAMPLE_SECONDS", PERIOD)
    main, _ = cluster([{"cpu": 10.0}, {"cpu": 40.0}])
    with Tracker(uri, run_id, tmp_path, sampler=main.metrics):
        wait_for(main.metrics, 2)
        time.sleep(1.5)
    metrics = client.get_run(run_id).data.metrics
    assert metrics == {
        "system/nodes": 2.0,
        "system/min/cpu": 10.0,
        "system/mean/cpu": 25.0,
        "system/max/cpu": 40.0,
    }
