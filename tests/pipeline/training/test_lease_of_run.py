"""Two drivers of one run: the second is rejected or takes over, the first then changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.cli.common import run_job
from pipeline.checkpoints.meta import EarlyStoppingState
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.errors import LeaseLostError, UserError
from pipeline.storage.folder import Storage, join
from pipeline.storage.lease import LEASE_FILE, LeaseInfo
from pipeline.storage.lease.compare_and_swap import swap_file
from pipeline.tracking import connect
from pipeline.training.fit import fit
from pipeline.training.run_record import RunRecord
from tests.conftest import ROOT
from tests.pipeline.checkpoints.examples import example_meta
from tests.pipeline.checkpoints.test_manager import advance, managed, save
from tests.pipeline.training.test_fit import status
from tests.pipeline.training.test_stop import at_step
from tests.s3_server import s3_server


def take_over(uri: str) -> None:
    """Replace the lease of a run as a driver on another machine does once it has expired."""
    file = swap_file(Storage(uri), LEASE_FILE)
    replaced = False
    while not replaced:  # a heartbeat may come between
        seen = file.read()
        info = LeaseInfo.parse(seen.data or b"", LEASE_FILE)
        other = info.model_copy(update={"owner": "another", "holder": "process 1 on elsewhere"})
        replaced = file.replace(other.encode(), seen)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files but those of the spool, in which a driver queues its own records."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "tracking" not in path.parts
    }


@pytest.mark.parametrize("seconds", [1.0, 600.0])  # found by a heartbeat; by a commit
def test_driver_whose_run_was_taken_over_changes_nothing(
    small: Config, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    config = small.replace({"ray.lease_seconds": seconds, "data.test": None})
    folder, before = Path(str(config.ray.storage)) / "one", {}

    def lose() -> None:
        wait_until((folder / "step-00000005" / "meta.json").exists)
        take_over(str(folder))
        before.update(contents(folder))
        time.sleep(1.0 if seconds < 10 else 0.0)

    at_step(monkeypatch, 8, lose)
    with pytest.raises(LeaseLostError, match="'one' was taken over by process 1 on elsewhere"):
        fit(config, run="one")
    assert contents(folder) == before
    assert status(config, "one") == ("running", "RUNNING")


def test_training_that_ends_after_the_takeover_registers_nothing(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small.replace({"registry.name": "shapes", "data.val": None})
    folder = Path(str(config.ray.storage)) / "one"
    # After the last checkpoint, while data.test is scored.
    monkeypatch.setattr(
        "pipeline.training.worker.validate", lambda *_: take_over(str(folder)) or {}
    )
    with pytest.raises(LeaseLostError, match="'one' was taken over by"):
        fit(config, run="one")
    assert status(config, "one") == ("running", "RUNNING")
    assert not connect(str(config.tracking.uri)).search_registered_models()


def test_job_of_a_lost_run_fails_in_one_line(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(str(small.ray.storage)) / "one"

    def lose(*_: object, **__: object) -> None:
        take_over(str(folder))
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.fit.run_rank", lose)
    options = [f"--{key}={value}" for key, value in options_of(small).items()]
    with pytest.raises(SystemExit) as caught:
        run_job(train.main, ["--run", "one", *options])
    assert caught.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("failed: run 'one' was taken over")
    assert status(small, "one") == ("running", "RUNNING")


def options_of(config: Config) -> dict[str, Any]:
    sections = config.model_dump(mode="json", exclude_defaults=True)
    return {
        f"{section}.{key}": json.dumps(value) if value is None or isinstance(value, bool) else value
        for section, fields in sections.items()
        for key, value in fields.items()
    }


def test_store_of_a_lost_run_refuses_every_change(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    record.hold()
    store = CheckpointStore(record.uri, record.check_lease)
    state = {"model": {}, "ema": {}}
    for step in (1, 2, 3):
        store.save(state, example_meta(step, ap=0.1))
    take_over(record.uri)
    before = contents(tmp_path)
    changes: list[Callable[[], object]] = [
        lambda: store.save(state, example_meta(3, ap=0.2)),
        lambda: store.add_evaluation(3, {}, EarlyStoppingState(best=0, evaluations_since_best=0)),
        lambda: store.prune(1),
        lambda: store.quarantine("step-00000001"),
        lambda: store.discard(2),
        lambda: record.write("abc", "failed", Config()),
        lambda: record.write_failure(UserError("a mistake")),
        record.clear_failure,
    ]
    for change in changes:
        with pytest.raises(LeaseLostError):
            change()
    record.close()
    assert contents(tmp_path) == before
    # A worker of the lost driver is refused too; without a lease nothing is checked.
    assert RunRecord(str(tmp_path), "one", record.owner).lost() is not None
    assert RunRecord(str(tmp_path), "one").lost() is None


def test_checkpoint_is_not_committed_if_the_run_is_lost_while_it_is_written(
    tmp_path: Path,
) -> None:
    lost: list[bool] = []

    def check() -> None:
        if len(lost) == 1:  # the first check is before the file of tensors, the second after
            raise LeaseLostError("run 'one' was taken over")
        lost.append(True)

    store = CheckpointStore(tmp_path, check)
    with managed(store) as (manager, trainer):
        manager.restore(lambda meta: None)
        advance(trainer)
        save(manager)
        assert manager.missing() is not None
        with pytest.raises(LeaseLostError, match="taken over"):
            save(manager)
        with pytest.raises(LeaseLostError, match="taken over"):
            manager.finish()
    assert [path.name for path in tmp_path.rglob("*.*")] == ["state.pt"]


def test_rejected_start_leaves_nothing_and_former_folders_are_resumed(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    record.hold()
    record.close()
    assert list((tmp_path / "one").iterdir()) == []
    (tmp_path / "one" / "driver.lock").write_text("process 7 on a machine that is gone")
    record = RunRecord(str(tmp_path), "one")
    record.hold()
    record.write("abc", "running", Config())
    record.close()
    assert json.loads((tmp_path / "one" / LEASE_FILE).read_text())["released"]


def wait_until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


class Driver:
    """A driver process on a machine: its own cache, and processes that others do not see.

    It trains up to step ``gate`` and pauses there until `open_gate`.
    """

    CODE = """
import sys, time
from pathlib import Path
from pipeline.storage.lease import process_identity
from pipeline.training.trainer.trainer import Trainer
gate, path, step = int(sys.argv[1]), Path(sys.argv[2]), Trainer.step
process_identity._scope = lambda: path.name
def stepped(self, batch):
    while self.step_count >= gate and not path.exists():
        time.sleep(0.05)
    return step(self, batch)
Trainer.step = stepped
from jobs import train
from jobs.cli.common import run_job
run_job(train.main, sys.argv[3:])
"""

    def __init__(self, config: Config, folder: Path, machine: str, gate: int) -> None:
        options = [f"--{key}={value}" for key, value in options_of(config).items()]
        self._log, self._gate = folder / f"{machine}.log", folder / machine
        script = [sys.executable, "-c", self.CODE, str(gate), str(self._gate)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*script, "--run", "one", *options],
                cwd=ROOT,
                env={**os.environ, "XDG_CACHE_HOME": str(folder / f"{machine}.cache")},
                stdout=log,
                stderr=log,
            )

    def open_gate(self) -> None:
        self._gate.touch()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self._log.read_text() or self.process.poll() is not None)
        assert text in self._log.read_text()

    def wait(self) -> tuple[int, str]:
        """Return the exit code and the output."""
        return self.process.wait(240), self._log.read_text()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_drivers_on_two_machines_with_an_object_store(
    s3: str, small: Config, tmp_path: Path
) -> None:
    small = small.replace({"data.test": None, "data.val": None, "train.epochs": 4})
    whole = fit(small, run="whole")
    config = small.replace({"ray.storage": s3, "ray.lease_seconds": 3.0})
    store = CheckpointStore(join(s3, "one"))
    first = Driver(config, tmp_path, "first", gate=12)
    drivers = [first]
    try:
        wait_until(lambda: at(store) == 10 or first.process.poll() is not None)
        second = Driver(config, tmp_path, "second", gate=0)
        drivers.append(second)
        code, output = second.wait()
        assert code == 2 and first.process.poll() is None
        assert f"is being trained by process {first.process.pid} on " in output
        first.process.send_signal(signal.SIGSTOP)
        third = Driver(config, tmp_path, "third", gate=17)
        drivers.append(third)
        third.wait_for("waiting 3 s for a sign of life")
        third.wait_for("resuming after step 10")
        wait_until(lambda: at(store) == 15 or third.process.poll() is not None)
        first.process.send_signal(signal.SIGCONT)
        first.open_gate()
        code, output = first.wait()
        assert code == 1
        assert f"failed: run 'one' was taken over by process {third.process.pid}" in output
        assert at(store) == 15 and third.process.poll() is None
        assert status_of(config, s3) == ("running", "RUNNING")
        third.open_gate()
        code, output = third.wait()
        assert code == 0, output
        assert status_of(config, s3) == ("finished", "FINISHED")
        assert store.saved()[-1].meta.weights_sha256 == whole.weights_sha256
    finally:
        for driver in drivers:
            driver.process.kill()
            driver.process.wait()


def at(store: CheckpointStore) -> int:
    return max((item.step for item in store.saved()), default=0)


def status_of(config: Config, storage: str) -> tuple[str, str]:
    info = RunRecord(storage, "one").read()
    assert info is not None
    return info.status, connect(str(config.tracking.uri)).get_run(info.run_id).info.status
