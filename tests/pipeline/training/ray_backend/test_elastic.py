"""Workers leave and join: 2 -> 1 -> 2 in one run, and every sample is used exactly once."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.data import Batch, load_manifest
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.data.shards.reader import ShardSet
from pipeline.training.fit import FitResult, fit
from pipeline.training.ray_backend import launch
from pipeline.training.trainer.optimizer import peak_lr, warmup_cosine
from pipeline.training.trainer.trainer import Trainer

pytestmark = pytest.mark.integration

STEPS, BATCH, SAMPLES = 300, 4, 20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a head without workers, and two nodes with resources for one worker each."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.leaving = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)][1]
    ray.init(address=nodes.address, logging_level="WARNING")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def recording_worker(settings: Mapping[str, Any]) -> Any:
    """Run the worker and write a line per step: its rank, attempt and samples.

    Steps are slow until the file ``hurry`` appears, so that workers can leave and join in between.
    """
    step, folder = Trainer.step, Path(settings["storage"])

    def recorded(self: Trainer, batch: Batch) -> Any:
        if not hasattr(self, "attempt"):
            self.attempt = self.world.broadcast(time.time())
        if not (folder / "hurry").exists():
            time.sleep(0.3)
        parts = step(self, batch)
        line = {
            "attempt": self.attempt,
            "step": self.step_count,
            "size": self.world.size,
            "lr": self.learning_rate,
            "ids": batch.image_ids,
        }
        with open(folder / f"rank-{self.attempt}-{self.world.rank}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\n")
        return parts

    Trainer.step = recorded  # type: ignore[method-assign]
    return launch._ray_worker(settings)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in folder.glob("rank-*.jsonl")
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]


def wait_for(what: Callable[[], bool], training: threading.Thread, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert training.is_alive(), "the training ended too early"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_every_sample_is_used_once_while_workers_leave_and_join(
    cluster: Any, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(launch, "_ray_worker", recording_worker)
    folder = tmp_path / "runs"
    config = small.replace(
        {
            "ray.enabled": True,
            "ray.workers": [1, 2],
            "ray.resize_seconds": 2,
            "data.val": None,
            "data.test": None,
            "train.checkpoint_every": 3,
            "train.epochs": STEPS * BATCH // SAMPLES,
            "train.warmup_steps": 10,
        }
    )
    results: list[FitResult] = []
    training = threading.Thread(target=lambda: results.append(fit(config, run="elastic")))
    training.start()

    def steps(size: int, after: int = 0) -> set[int]:
        return {line["step"] for line in lines(folder) if line["size"] == size} - set(range(after))

    wait_for(lambda: len(steps(2)) >= 18, training)
    cluster.remove_node(cluster.leaving, allow_graceful=False)
    wait_for(lambda: len(steps(1)) >= 18, training)  # with a checkpoint among them
    cluster.add_node(num_cpus=1)
    alone = max(steps(1))
    wait_for(lambda: bool(steps(2, after=alone)), training)
    (folder / "hurry").touch()
    training.join()
    assert results
    attempts = sorted({line["attempt"] for line in lines(folder)})
    *_, shrunk, grown = [
        [line["step"] for line in lines(folder) if line["attempt"] == attempt]
        for attempt in attempts
    ]
    assert min(grown) == max(shrunk) + 1, "more workers start where the fewer have stopped"

    # A restart repeats steps after its checkpoint; the last attempt determined the weights.
    last: dict[int, list[dict[str, Any]]] = {}
    for line in sorted(lines(folder), key=lambda line: line["attempt"]):
        others = last.setdefault(line["step"], [])
        if others and others[0]["attempt"] != line["attempt"]:
            others.clear()
        others.append(line)
    assert sorted(last) == list(range(1, STEPS + 1))
    sizes = [last[step][0]["size"] for step in sorted(last)]
    changes = [size for before, size in zip([0, *sizes], sizes, strict=False) if size != before]
    assert changes == [2, 1, 2]

    shards = ShardSet(str(config.data.train))
    manifest = load_manifest(str(config.data.train))
    order = SampleOrder([shard.samples for shard in manifest.shards], config.train.seed)
    names = [json.loads(shards.read(i).json)["image_id"] for i in range(SAMPLES)]
    for step, ranks in last.items():
        positions = range((step - 1) * BATCH, step * BATCH)
        assert len(ranks) == ranks[0]["size"]
        seen = sorted(name for rank in ranks for name in rank["ids"])
        assert seen == sorted(names[order.sample(t)[0]] for t in positions)
        lr = peak_lr(config.train) * warmup_cosine(step - 1, STEPS, 10, config.train.final_lr)
        assert [rank["lr"] for rank in ranks] == pytest.approx([lr] * len(ranks))
    for epoch in range(STEPS * BATCH // SAMPLES):
        steps_of_epoch = range(5 * epoch + 1, 5 * epoch + 6)
        seen = sorted(n for step in steps_of_epoch for rank in last[step] for n in rank["ids"])
        assert seen == sorted(names)
