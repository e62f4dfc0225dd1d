"""Storage that is not the same for all nodes of a cluster, and nodes that do not respond."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tracking import connect
from pipeline.training.fit import fit
from pipeline.training.ray_backend import preflight
from pipeline.training.ray_backend.preflight import check_nodes, check_this_node, storage_problem
from pipeline.training.run_record import RunRecord


def start_record(storage: Path, run_id: str = "abc") -> RunRecord:
    record = RunRecord(str(storage), "one")
    record.check_storage()
    record.write(run_id, "running", Config())
    return record


def test_shared_storage_has_no_problem(tmp_path: Path) -> None:
    record = start_record(tmp_path)
    assert storage_problem(record.uri, "abc") is None
    check_this_node(record.uri, record.storage, "abc")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["run.json"]


def test_missing_or_other_record_is_reported(tmp_path: Path) -> None:
    record = start_record(tmp_path)
    assert (
        storage_problem(str(tmp_path / "two"), "abc") == "does not see what the driver has written"
    )
    assert not (tmp_path / "two").exists()
    with pytest.raises(UserError, match="sees another run of that name.*every node reads"):
        check_this_node(record.uri, record.storage, "other")


def test_only_nodes_that_fit_a_worker_are_checked() -> None:
    ray_config = Config.from_dict({"ray": {"cpus_per_worker": 2, "gpu": True}}).ray
    assert preflight.fits_worker({"CPU": 2.0, "GPU": 1.0}, ray_config)
    assert not preflight.fits_worker({"CPU": 64.0}, ray_config)
    assert not preflight.fits_worker({"CPU": 1.0, "GPU": 8.0}, ray_config)
    assert not preflight.fits_worker({"memory": 1e9}, Config().ray)


@pytest.mark.integration
def test_nodes_that_hang_or_have_just_died_do_not_stop_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "CHECK_SECONDS", 20.0)
    record = start_record(tmp_path / "runs")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    hangs = None
    try:
        ray.init(address=cluster.address, logging_level="WARNING")
        nodes = [cluster.add_node(wait=False, num_cpus=cpus) for cpus in (2, 2, 2, 1)]
        cluster.wait_for_nodes()
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        hangs = raylets[1]
        os.kill(hangs, signal.SIGSTOP)
        for pid in raylets[2:]:
            os.kill(pid, signal.SIGKILL)
        assert sum(node["Alive"] for node in ray.nodes()) == 5
        two_cpus = Config.from_dict({"ray": {"cpus_per_worker": 2}}).ray
        check_nodes(record, "abc", two_cpus, "trial 3")
        (line,) = [li for li in capsys.readouterr().err.splitlines() if "no response" in li]
        address = nodes[0].node_ip_address
        assert line.startswith(f"trial 3: no response from {address}, {address}: ray.storage was ")
    finally:
        if hangs is not None:
            os.kill(hangs, signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def second_node(tmp_path: Path) -> Iterator[None]:
    """Start a raylet for which ``tmp_path/runs`` is an empty disk that only it sees."""
    runs = tmp_path / "runs"
    runs.mkdir()
    isolated = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids private mounts")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, logging_level="WARNING")
    executable = Path(sys.executable).with_name("ray")
    start = f"{executable} start --address {cluster.address} --num-cpus 1 --block"
    node = subprocess.Popen(
        [*isolated, "sh", "-c", f"mount -t tmpfs none {runs} && exec {start}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(120):
            if ray.cluster_resources().get("CPU") == 2:
                break
            time.sleep(0.5)
        yield
    finally:
        ray.shutdown()
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(30)
        cluster.shutdown()


@pytest.mark.integration
def test_storage_that_is_not_shared_is_detected_before_training(
    small: Config, second_node: None
) -> None:
    assert len(ray.nodes()) == 2
    config = small.replace({"ray.enabled": True, "ray.workers": 2, "ray.address": "auto"})
    began = time.monotonic()
    with pytest.raises(UserError, match="is not the same for all nodes") as caught:
        fit(config, run="one")
    assert "does not see what the driver has written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30
    (run,) = connect(str(config.tracking.uri)).search_runs(["1"])
    assert run.info.status == "FAILED"
