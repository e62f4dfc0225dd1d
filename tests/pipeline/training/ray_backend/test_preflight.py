"""Storage that is not the same for all nodes of a cluster."""

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
from pipeline.training.ray_backend.preflight import check_this_node, storage_problem
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
