"""A training without a store whose rank 0 has another cache than the driver, as on two machines."""

import platform
from pathlib import Path

import pytest

from jobs import tracking
from pipeline.checkpoints.format import load_meta
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.tracking import connect, create_run, finish_run, spool_folder
from pipeline.training.ray_backend.launch import WorkerSettings, worker_settings
from pipeline.training.run_record import RunRecord
from pipeline.training.session import LocalSession
from pipeline.training.trainer.trainer import Trainer
from pipeline.training.worker import run_rank
from tests.pipeline.tracking.spool.test_full_disk import FullDisk
from tests.ports import free_port
from tests.stores import points


class Machines:
    """A driver and a node with their own caches; they share an object store and a run store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Config) -> None:
        self._monkeypatch, self.folder, self.config = monkeypatch, tmp_path, config
        self.record = RunRecord("mock:///bucket", "one")
        self.away, self.store = f"http://127.0.0.1:{free_port()}", str(config.tracking.uri)

    def use(self, name: str) -> None:
        """Act as this machine from now on."""
        self._monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / name))

    def start(self) -> WorkerSettings:
        """Create the run without a store on the driver. Return what the node gets."""
        self.use("driver")
        optional = self.config.replace({"tracking.required": False})
        spool = spool_folder(self.record.uri)
        run_id = create_run(self.away, optional, "one", spool=spool)
        sent = worker_settings(optional, self.record, self.store, run_id).model_dump(mode="json")
        return WorkerSettings.from_content(sent, "settings")

    def train(self, settings: WorkerSettings, uri: str) -> None:
        """Train on the node."""
        self.use("node")
        session = LocalSession(World(), CheckpointStore(self.folder / "checkpoints"))
        spool = spool_folder(self.record.uri)
        run_rank(settings.config, session, uri, settings.run_id, spool, run_spec=settings.run_spec)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Config) -> Machines:
    return Machines(monkeypatch, tmp_path, small.replace({"data.val": None, "data.test": None}))


def test_rank_0_creates_the_run_when_the_store_responds(machines: Machines) -> None:
    settings = machines.start()
    machines.train(settings, machines.store)
    client = connect(machines.store)
    experiment = client.get_experiment_by_name("detection").experiment_id
    (run,) = client.search_runs([experiment])
    assert [step for step, _ in points(client, run.info.run_id, "train/loss")] == list(range(1, 11))
    machines.use("driver")
    assert finish_run(machines.store, settings.run_id, spool_folder(machines.record.uri))
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2.0"
    assert not list(machines.folder.rglob("*.jsonl"))


def test_records_that_remain_on_a_node_are_reported_with_its_name(
    machines: Machines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.worker.TRACKER_CLOSE_SECONDS", 0.0)
    settings = machines.start()
    machines.train(settings, machines.away)
    assert f"{spool_folder(machines.record.uri)} on {platform.node()} and is sent" in caplog.text
    machines.use("driver")
    assert finish_run(machines.store, settings.run_id, spool_folder(machines.record.uri))
    machines.use("node")
    storage = ["--storage", str(machines.folder / "runs"), "--tracking.uri", machines.store]
    (sent,) = tracking.main(["sync", *storage])["runs"]
    client = connect(machines.store)
    assert len(points(client, sent["run_id"], "train/loss")) == 10
    (run,) = client.search_runs([client.get_experiment_by_name("detection").experiment_id])
    assert (run.info.run_id, run.info.status) == (sent["run_id"], "FINISHED")


def test_points_that_only_memory_has_are_resumed_from_the_checkpoint(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disks of a node are full and the store is away when the node is lost."""
    machines.config = machines.config.replace({"train.checkpoint_steps": 6})
    settings = machines.start()
    step = Trainer.step

    def lost(self: Trainer, batch: object) -> object:
        if self.step_count == 8:
            raise MemoryError("the node is lost")
        return step(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.worker.TRACKER_CLOSE_SECONDS", 0.0)
        disk = FullDisk(patch, machines.folder / "node")
        disk.full = True
        patch.setattr(Trainer, "step", lost)
        with pytest.raises(MemoryError):
            machines.train(settings, machines.away)
    assert "were dropped: disk and memory are full" in caplog.text
    meta = load_meta(machines.folder / "checkpoints" / "step-00000006")
    assert 6 <= len(meta.records) <= 20 and "train/loss" in "".join(meta.records)
    machines.use("other node")
    monkeypatch.setattr(machines, "use", lambda name: None)
    machines.train(settings, machines.store)
    client = connect(machines.store)
    (run,) = client.search_runs([client.get_experiment_by_name("detection").experiment_id])
    assert [step for step, _ in points(client, run.info.run_id, "train/loss")] == list(range(1, 11))
    last = load_meta(machines.folder / "checkpoints" / "step-00000010")
    assert last.records == []
