"""The faults of docs/faults.md on a cluster of several nodes: lost steps are repeated exactly.

Every run ends with the weights of an undisturbed run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.distributed.ray_cluster import report_if_busy
from pipeline.errors import LeaseLostError, TrainingFailed, TrainingStopped, UserError
from pipeline.tracking import connect
from pipeline.training.fit import FitResult, fit
from pipeline.training.ray_backend import launch
from tests.jobs.head import BIN, environment
from tests.nginx import Nginx
from tests.pipeline.training.test_fit import status
from tests.pipeline.training.test_lease_of_run import take_over, wait_until
from tests.stores import new_store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

STEPS, CHECKPOINT_STEPS = 60, 5


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Start a head without workers, and two nodes with resources for one worker each."""
    import ray
    import ray.cloudpickle
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        patch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
        patch.setattr(launch, "_ray_worker", faulty_worker)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level="WARNING")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def faulty_worker(settings: Mapping[str, Any]) -> Any:
    """Run the worker with faults: ``faults.json`` in the storage gives kind, rank and step."""
    import multiprocessing
    import os
    import signal
    import time

    import torch

    from pipeline.training.ray_backend import launch
    from pipeline.training.trainer.trainer import Trainer

    step, folder = Trainer.step, Path(settings["storage"])
    plan = folder / "faults.json"

    def stepped(self: Any, batch: Any) -> Any:
        time.sleep(float((folder / "pace").read_text()) if (folder / "pace").exists() else 0.1)
        for kind, (rank, when) in json.loads(plan.read_text()).items() if plan.exists() else ():
            done = folder / f"{kind}-happened"
            if (self.world.rank, self.step_count) != (rank, when) or done.exists():
                continue
            done.touch()
            if kind == "exception":
                raise RuntimeError("a bug in a rank")
            if kind == "loader":
                for process in multiprocessing.active_children():
                    process.kill()
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "nan":
                next(self.detector.parameters()).data.fill_(torch.nan)
        return step(self, batch)

    Trainer.step = stepped  # type: ignore[method-assign]
    return launch._ray_worker(settings)


@pytest.fixture
def config(nodes: Any, small: Config) -> Config:
    return small.replace(
        {
            "ray.enabled": True,
            "ray.workers": 2,
            "ray.max_failures": 2,
            "data.val": None,
            "data.test": None,
            "train.epochs": STEPS * 4 / 20,
            "train.checkpoint_every": 100.0,
            "train.checkpoint_steps": CHECKPOINT_STEPS,
        }
    )


@pytest.fixture(scope="module")
def whole(nodes: Any, scenes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the hash of the weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    tree = {
        "data": {"train": scenes["train"], "loader_workers": 0},
        "model": {"image_size": 64},
        "train": {
            "epochs": STEPS * 4 / 20,
            "batch_size": 4,
            "log_every": 1,
            "warmup_steps": 2,
            "precision": "fp32",
            "checkpoint_every": 100.0,
            "checkpoint_steps": CHECKPOINT_STEPS,
        },
        "tracking": {"uri": new_store(folder)},
        "ray": {"workers": 2, "storage": str(folder / "runs")},
    }
    return fit(Config.from_dict(tree), run="whole").weights_sha256


def history(result: FitResult) -> list[str]:
    """Return the run's history after checking that its metrics have no gaps."""
    client = connect(result.tracking_uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(result.run_id, "train/loss")
    assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
    tags = sorted(run.data.tags.items())
    return [text for key, text in tags if key.startswith("history.")]


def starts(result: FitResult) -> list[int]:
    """Return the steps after which workers have started."""
    lines = [line for line in history(result) if line.startswith("workers start")]
    return [int(line.split()[4]) for line in lines]


def in_thread(config: Config) -> tuple[threading.Thread, list[FitResult], Callable[[int], None]]:
    """Start a training in a thread; return it, its result, and a function to await a checkpoint."""
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(fit(config, run="one")))
    thread.start()
    folder = Path(str(config.ray.storage)) / "one"

    def reached(step: int) -> None:
        until = time.monotonic() + 120
        while not (folder / f"step-{step:08d}" / "meta.json").exists():
            assert thread.is_alive() and time.monotonic() < until, f"no checkpoint {step}"
            time.sleep(0.05)

    return thread, results, reached


def test_exception_killed_loader_and_killed_rank_lose_only_recent_steps(
    config: Config, whole: str, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    plan = {"exception": [1, 2 * CHECKPOINT_STEPS + 2], "loader": [0, 6 * CHECKPOINT_STEPS + 2]}
    plan["kill"] = [1, 9 * CHECKPOINT_STEPS + 2]
    (tmp_path / "runs" / "faults.json").write_text(json.dumps(plan))
    result = fit(config.replace({"data.loader_workers": 1, "ray.max_failures": 3}), run="one")
    first, second, third, fourth = starts(result)
    assert first == 0
    # A checkpoint that was being written may be lost; the one before is not.
    assert second in (CHECKPOINT_STEPS, 2 * CHECKPOINT_STEPS)
    # Batches that had been loaded already were trained on.
    assert third in (5 * CHECKPOINT_STEPS, 6 * CHECKPOINT_STEPS, 7 * CHECKPOINT_STEPS)
    assert fourth in (8 * CHECKPOINT_STEPS, 9 * CHECKPOINT_STEPS)
    assert result.weights_sha256 == whole


@pytest.mark.parametrize("seconds", [1.0, 600.0])  # the driver finds it; rank 0 finds it
def test_run_that_was_taken_over_ends_on_all_ranks_without_a_restart(
    config: Config, seconds: float
) -> None:
    folder = Path(str(config.ray.storage)) / "one"
    checkpoint = folder / f"step-{CHECKPOINT_STEPS:08d}" / "meta.json"
    before: set[Path] = set()

    def lose() -> None:
        wait_until(checkpoint.exists)
        take_over(str(folder))
        time.sleep(0.5)  # a commit may be under way
        before.update(folder.rglob("step-*/meta.json"))

    thread = threading.Thread(target=lose)
    thread.start()
    with pytest.raises(LeaseLostError, match="'one' was taken over by process 1 on elsewhere"):
        fit(config.replace({"ray.lease_seconds": seconds}), run="one")
    thread.join()
    assert set(folder.rglob("step-*/meta.json")) == before
    assert not (folder / "failure.json").exists()
    assert status(config, "one") == ("running", "RUNNING")
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    tags = connect(str(config.tracking.uri)).get_run(run_id).data.tags.values()
    assert len([text for text in tags if text.startswith("workers start")]) == 1


def test_lost_node_is_replaced(config: Config, whole: str, nodes: Any) -> None:
    training, results, reached = in_thread(config.replace({"ray.max_failures": 0}))
    reached(2 * CHECKPOINT_STEPS)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    nodes.add_node(num_cpus=1)
    training.join(200)
    (result,) = results
    assert starts(result)[1] >= 2 * CHECKPOINT_STEPS
    assert result.weights_sha256 == whole


def test_outage_of_the_shard_server_is_waited_out(
    config: Config, whole: str, scenes: dict[str, str], tmp_path: Path, capfd: Any
) -> None:
    """The only failure is spent on an exception; the restart then needs the server."""
    server = Nginx(Path(scenes["train"]), tmp_path / "nginx")
    server.start()
    (tmp_path / "runs").mkdir()
    plan = {"exception": [1, 2 * CHECKPOINT_STEPS + 2]}
    (tmp_path / "runs" / "faults.json").write_text(json.dumps(plan))
    options = {"data.train": server.uri, "data.cache": str(tmp_path / "cache"), "data.retries": 1}
    training, results, reached = in_thread(config.replace({**options, "ray.max_failures": 1}))
    try:
        reached(CHECKPOINT_STEPS)
        server.stop()  # all shards are cached, but not the manifest
        until, output = time.monotonic() + 120, ""
        while "outage 1 of 20: " not in output:
            assert training.is_alive() and time.monotonic() < until
            output += capfd.readouterr().err
            time.sleep(0.2)
        server.start()
        training.join(200)
    finally:
        server.stop()
    assert "manifest.json: cannot connect to" in output
    (result,) = results
    assert starts(result)[1] >= CHECKPOINT_STEPS
    assert result.weights_sha256 == whole
    assert "OutageError" not in output + capfd.readouterr().err


def test_drained_node_causes_a_checkpoint(
    config: Config, whole: str, nodes: Any, tmp_path: Path
) -> None:
    import ray

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pace").write_text("0.4")
    training, results, _ = in_thread(config.replace({"train.checkpoint_steps": 100}))
    until = time.monotonic() + 90
    while not list(Path(str(config.ray.storage)).glob("one/tracking/*.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.2)
    time.sleep(2.0)
    leaving = next(n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU"))["NodeID"]
    subprocess.run(
        [
            *(BIN / "ray", "drain-node", f"--address={nodes.address}", f"--node-id={leaving}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"),
            "--deadline-remaining-seconds=6",
        ],
        check=True,
        env=environment(),
    )
    nodes.add_node(num_cpus=1)
    training.join(200)
    (result,) = results
    (saved, *_) = [line for line in history(result) if "saved after step" in line]
    assert "the node of ranks" in saved
    assert starts(result)[1] >= int(saved.split()[3].rstrip(":")) > 0
    assert result.weights_sha256 == whole


def test_non_finite_gradient_stops_all_ranks_and_saves_their_images(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "faults.json").write_text(json.dumps({"nan": [1, CHECKPOINT_STEPS + 2]}))
    with pytest.raises(
        TrainingFailed, match=f"not finite at step {CHECKPOINT_STEPS + 2}.*saved in"
    ):
        fit(config, run="one")
    folder = tmp_path / "runs" / "one"
    dumped = sorted(path.name for path in (folder / "not-finite").iterdir())
    assert dumped == [f"step-{CHECKPOINT_STEPS + 2:08d}-rank-{rank}.pt" for rank in (0, 1)]
    assert (folder / f"step-{CHECKPOINT_STEPS:08d}" / "meta.json").exists()
    record = json.loads((folder / "run.json").read_text())
    run = connect(str(config.tracking.uri)).get_run(record["run_id"])
    assert (record["status"], run.info.status) == ("failed", "FAILED")


def test_too_small_cluster_is_rejected_in_seconds(config: Config, nodes: Any) -> None:
    began = time.monotonic()
    many = config.replace({"ray.workers": 4})
    with pytest.raises(
        UserError, match=r"ray.workers 4 need 4 CPUs, the cluster has 2; "
    ) as caught:
        fit(many, run="one")
    if not nodes.address.startswith("127."):  # such a cluster cannot grow
        assert "ray.wait_for_nodes" in str(caught.value)
    assert time.monotonic() - began < 30


def test_wait_for_a_busy_cluster_is_reported_and_limited(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from pipeline.distributed import ray_cluster as cluster

    @ray.remote(num_cpus=1)
    class Other:
        def ready(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.ready.remote(), timeout=60)
    until = time.monotonic() + 30
    while "only 1 are free" not in (output := capsys.readouterr().err):
        assert time.monotonic() < until, output
        report_if_busy(config.ray)
        time.sleep(0.5)

    def terminate() -> None:
        record = Path(str(config.ray.storage)) / "two" / "run.json"
        while not record.exists():
            time.sleep(0.5)
        time.sleep(5.0)  # until only the controller can receive it
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        monkeypatch.setattr(cluster, "MIN_WAIT_SECONDS", 1.0)
        with pytest.raises(
            TrainingFailed, match="no resources for 2 workers for .* raise ray.wait_for"
        ):
            fit(config.replace({"ray.workers": [2, 3]}), run="one")
        monkeypatch.setattr(cluster, "MIN_WAIT_SECONDS", 600.0)
        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(TrainingStopped, match="stopped by SIGTERM while waiting for workers"):
            fit(config, run="two")
        assert status(config, "two") == ("stopped", "KILLED")
    finally:
        ray.kill(other)
