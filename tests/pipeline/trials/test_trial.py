"""A trial reports what a retry would only repeat, and raises what a retry may repair."""

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.errors import OutageError, TrainingFailed, UserError
from pipeline.training.error_hints import UnrecoverableFailure
from pipeline.training.run_record import RunRecord
from pipeline.trials import trial
from pipeline.trials.trial import MISTAKE, TrialSettings, run_trial
from pipeline.trials.trial_records import TrialRecord, TrialRecords
from tests.pipeline.checkpoints.examples import example_meta


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a trial whose training raises, and returns its reports."""
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", reports.append)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", object)
    settings = TrialSettings(
        config=Config(), sweep="s", storage=str(tmp_path), tracking_uri="x", parent_run_id="1"
    )

    def run(error: Exception) -> list[dict[str, Any]]:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(trial, "fit", fail)
        run_trial({"name": "t0001", "params": {}}, settings.model_dump(mode="json"))
        return reports

    return run


@pytest.mark.parametrize(
    "error", [UserError("out of memory"), UnrecoverableFailure("the gradient is not finite")]
)
def test_mistakes_are_reported_and_not_retried(run: Any, error: Exception) -> None:
    assert run(error) == [{MISTAKE: str(error)}]


@pytest.mark.parametrize("error", [TrainingFailed("rank 1 failed"), OutageError("no response")])
def test_failures_and_outages_are_raised_for_a_retry(run: Any, error: Exception) -> None:
    with pytest.raises(type(error)):
        run(error)


def test_trial_waits_until_its_former_process_has_released_the_run(
    run: Any, tmp_path: Path
) -> None:
    TrialRecords(str(tmp_path)).save(TrialRecord(name="t0001", params={}))
    former = RunRecord(str(tmp_path), "t0001")
    former.check_storage()
    former.hold()
    former.write("id", "running", Config())
    released = threading.Event()

    def release() -> None:
        released.set()
        former.close()

    timer = threading.Timer(1.0, release)
    timer.start()
    assert run(UserError("mistake")) and released.is_set()
    timer.join()


@pytest.mark.parametrize("status", ["running", "finished"])
def test_evaluations_that_were_not_recorded_are_reported(
    run: Any, tmp_path: Path, status: Any
) -> None:
    """A worker writes an evaluation before it reports it, and may be killed between."""
    TrialRecords(str(tmp_path)).save(TrialRecord(name="t0001", params={}, scores=[(1.0, 0.5)]))
    with contextlib.closing(RunRecord(str(tmp_path), "t0001")) as former:
        former.check_storage()
        former.hold()
        former.write("id", status, Config())
    store = CheckpointStore(tmp_path / "t0001")
    for epoch, ap in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (3.5, None)):
        store.save({}, example_meta(int(10 * epoch), ap, epoch=epoch))
    reports = run(UserError("mistake"))
    assert reports[:2] == [
        {"step": 20, "epoch": 2.0, "val/ap": 0.7},
        {"step": 30, "epoch": 3.0, "val/ap": 0.6},
    ]
    assert reports[2:] == ([] if status == "finished" else [{MISTAKE: "mistake"}])
