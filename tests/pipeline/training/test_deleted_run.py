"""A run that is deleted in MLflow while it trains."""

from pathlib import Path

import pytest

from jobs import tracking
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tracking import connect
from pipeline.training.fit import fit
from pipeline.training.run_log import RunLog


@pytest.fixture
def deleting(monkeypatch: pytest.MonkeyPatch, small: Config, tmp_path: Path) -> Config:
    """Return a config whose run is deleted at step 3."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log_step = RunLog.step

    def delete(self: RunLog, step: int, *arguments: object) -> None:
        if step == 3 and self.tracker is not None:
            connect(str(small.tracking.uri)).delete_run(self.tracker.run_id)
        log_step(self, step, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RunLog, "step", delete)
    return small


def test_deleted_run_is_reported_once_and_sent_after_it_is_restored(
    deleting: Config, caplog: pytest.LogCaptureFixture
) -> None:
    result = fit(deleting, run="one")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2, warnings
    assert all(f"{result.run_id} was deleted in sqlite" in text for text in warnings)
    assert "is queued in" in warnings[1] and "jobs.tracking sync" in warnings[1]

    storage = Path(str(deleting.ray.storage))
    with pytest.raises(UserError, match="were not sent"):
        tracking.main(["sync", "--storage", str(storage)])
    client = connect(result.tracking_uri)
    client.restore_run(result.run_id)
    tracking.main(["sync", "--storage", str(storage)])
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(result.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 11))
    pictures = {item.path for item in client.list_artifacts(result.run_id, "pictures")}
    assert pictures == {"pictures/val.jpg", "pictures/test.jpg"}
    assert not (storage / "one" / "tracking").exists()


def test_deleted_run_is_registered_and_resumed_after_it_is_restored(deleting: Config) -> None:
    config = deleting.replace({"registry.name": "shapes"})
    for message in ("nothing was registered: run .* was deleted", "was deleted"):
        with pytest.raises(UserError, match=message) as error:
            fit(config, run="one")
        assert "mlflow runs restore" in str(error.value)
    client = connect(str(config.tracking.uri))
    (run,) = client.search_runs(
        [client.get_experiment_by_name("detection").experiment_id], run_view_type=2
    )
    client.restore_run(run.info.run_id)
    assert fit(config, run="one").model_uri == "models:/shapes/1"
