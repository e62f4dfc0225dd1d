"""Training with Ray Train on a local cluster of two CPUs."""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.checkpoints.format import verify_checkpoint
from pipeline.config import Config
from pipeline.distributed.ray_cluster import ray_cluster
from pipeline.distributed.ray_private_api import cluster_actors
from pipeline.errors import TrainingFailed, UserError
from pipeline.tracking import connect
from pipeline.training.fit import fit

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["GUIDANCE_TEST_SESSION"] = uuid.uuid4().hex
    with ray_cluster(Config.from_dict({"ray": {"address": "local"}}).ray):
        yield


@pytest.fixture
def ray_config(small: Config) -> Config:
    return small.replace({"ray.enabled": True, "ray.workers": 2, "ray.max_failures": 1})


def test_cluster_listens_on_loopback_only() -> None:
    """Reads the sockets of the cluster's processes from /proc; 0100007F is 127.0.0.1."""
    import ray

    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    ours = listening_addresses()
    assert ours
    assert all(address.split(":")[0].endswith("0100007F") for address in ours), ours


def test_ranks_listen_on_loopback_only(ray_config: Config) -> None:
    before, ended = listening_addresses(), threading.Event()
    found: set[str] = set()

    def sample() -> None:
        while not ended.wait(0.1):
            found.update(listening_addresses() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        fit(ray_config.replace({"train.epochs": 1, "data.val": None}), run="sockets")
    finally:
        ended.set()
        sampler.join()
    assert len(found) > 2
    assert all(address.split(":")[0].endswith("0100007F") for address in found), found


def listening_addresses() -> set[str]:
    """Return the TCP addresses, as in /proc, on which processes of this session listen."""
    mine = {
        os.readlink(link)
        for process in Path("/proc").glob("[0-9]*")
        if os.environ["GUIDANCE_TEST_SESSION"].encode() in _environment(process)
        for link in _sockets(process)
    }
    listening = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    return {row[1] for row in listening if f"socket:[{row[9]}]" in mine}


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def _sockets(process: Path) -> list[Path]:
    try:
        return [p for p in (process / "fd").iterdir() if os.readlink(p).startswith("socket:")]
    except OSError:
        return []


def test_two_workers_train_evaluate_and_register(ray_config: Config) -> None:
    result = fit(ray_config.replace({"registry.name": "shapes"}), run="two")
    run = connect(result.tracking_uri).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert result.model_uri == "models:/shapes/1"
    assert {"val/ap", "test/ap"} <= set(result.metrics)
    meta = json.loads((Path(result.checkpoint) / "meta.json").read_text())
    assert meta["step"] in (5, 10)
    history = connect(result.tracking_uri).get_metric_history(result.run_id, "val/ap")
    assert [point.step for point in history] == [5, 10]


def actors(state: str | None = None) -> dict[str, int]:
    """Return the classes of the cluster's actors, with the process of one actor each."""
    return {actor["ActorClassName"]: actor["Pid"] for actor in cluster_actors(state)}


def test_unused_helper_processes_are_not_started(ray_config: Config) -> None:
    fit(ray_config.replace({"data.val": None, "data.test": None}), run="alone")
    seen = actors()
    assert "TrainController" in seen
    assert not {"PlacementGroupCleaner", "DatasetManager"} & seen.keys()


def kill_a_worker_after(checkpoint: Path) -> threading.Thread:
    """Send SIGKILL to one training worker as soon as two checkpoints are committed."""

    def work() -> None:
        while len(list(checkpoint.glob("step-*/meta.json"))) < 2:
            time.sleep(0.2)
        os.kill(actors("ALIVE")["RayTrainWorker"], signal.SIGKILL)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.timeout(600)
def test_killed_training_resumes_by_name_with_the_same_weights(
    ray_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even though its newest checkpoint is damaged."""
    steps = {"train.epochs": 6, "train.checkpoint_steps": 2, "train.keep_checkpoints": 3}
    config = ray_config.replace({"data.val": None, "ray.max_failures": 0, **steps})
    whole = fit(config, run="whole")

    killer = kill_a_worker_after(tmp_path / "runs" / "killed")
    with pytest.raises(TrainingFailed):
        fit(config, run="killed")
    killer.join()
    record = json.loads((tmp_path / "runs" / "killed" / "run.json").read_text())
    assert record["status"] == "failed"

    newest = sorted((tmp_path / "runs" / "killed").glob("step-*/meta.json"))[-1].parent
    with (newest / "state.pt").open("r+b") as state:
        state.truncate(1000)
    capfd.readouterr()

    resumed = fit(config, run="killed", resume="must")
    assert f"{newest.name} is damaged: state.pt has 1000 bytes" in capfd.readouterr().err
    assert resumed.run_id == record["run_id"]
    assert connect(resumed.tracking_uri).get_run(resumed.run_id).info.status == "FINISHED"
    assert whole.weights_sha256 == resumed.weights_sha256
    assert whole.ema_sha256 == resumed.ema_sha256
    one, other = (verify_checkpoint(r.checkpoint).files for r in (whole, resumed))
    assert one == other  # including optimizer, schedule and random generators
    assert whole.metrics == resumed.metrics


def test_unreadable_data_is_one_line_and_fails_the_run(
    ray_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    source = Path(str(ray_config.data.train))
    for path in source.iterdir():
        os.link(path, broken / path.name)
    (shard,) = broken.glob("*.tar")
    damaged = bytearray(shard.read_bytes())
    for at in range(2048, len(damaged)):
        damaged[at] ^= 0x5A
    shard.unlink()
    shard.write_bytes(bytes(damaged))
    config = ray_config.replace({"data.train": str(broken)})
    with pytest.raises(UserError, match="shard-000000") as caught:
        fit(config, run="broken")
    assert "Traceback" not in str(caught.value) + capfd.readouterr().err
    record = json.loads((tmp_path / "runs" / "broken" / "run.json").read_text())
    assert record["status"] == "failed"
    run = connect(str(ray_config.tracking.uri)).get_run(record["run_id"])
    assert run.info.status == "FAILED"


def test_more_workers_than_cpus_are_rejected_at_once(ray_config: Config) -> None:
    with pytest.raises(UserError, match=r"ray.workers 64 need 64 CPUs, the cluster has"):
        fit(ray_config.replace({"ray.workers": 64, "train.batch_size": 64}), run="many")
