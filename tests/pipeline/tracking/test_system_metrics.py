"""The load of nodes as points of a run."""

import platform
import time

from pipeline.tracking import Tracker
from pipeline.tracking.system_metrics import SystemSampler
from tests.stores import points

NODE = platform.node()


def test_tracker_samples_the_machine(uri, client, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.tracker._SAMPLE_SECONDS", 0.1)
    with Tracker(uri, run_id, tmp_path):
        time.sleep(2.5)
    metrics = client.get_run(run_id).data.metrics
    assert 0 <= metrics[f"system/{NODE}/system_memory_usage_percentage"] <= 100
    steps = [step for step, _ in points(client, run_id, f"system/{NODE}/disk_usage_percentage")]
    assert len(steps) == len(set(steps)) >= 2


def test_each_node_has_its_own_group(uri, client, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.tracker._SAMPLE_SECONDS", 0.1)
    trackers = []
    for node in ("one", "other/odd"):
        monkeypatch.setattr("platform.node", lambda node=node: node)
        trackers.append(Tracker(uri, run_id, tmp_path))
    time.sleep(1.5)
    for tracker in trackers:
        tracker.close()
    names = set(client.get_run(run_id).data.metrics)
    for node in ("one", "other_odd"):
        assert f"system/{node}/system_memory_usage_percentage" in names


def test_system_load_is_plausible():
    sampler = SystemSampler()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        pass
    metrics = sampler()
    assert 0 < metrics[f"system/{NODE}/cpu_utilization_percentage"] <= 100
    assert metrics[f"system/{NODE}/system_memory_usage_megabytes"] > 100
