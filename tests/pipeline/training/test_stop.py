"""SIGTERM, Ctrl-C and a non-finite gradient, in one process."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import train
from jobs.cli.common import run_job
from pipeline.checkpoints import manager as manager_module
from pipeline.config import Config
from pipeline.data import Batch
from pipeline.errors import TrainingFailed, TrainingStopped
from pipeline.tracking import connect
from pipeline.training import stop as stop_module
from pipeline.training import worker
from pipeline.training.fit import fit
from pipeline.training.run_log import RunLog
from pipeline.training.trainer.trainer import Trainer
from tests.pipeline.checkpoints.test_manager import FullDiskStore
from tests.pipeline.training.test_fit import status


@pytest.fixture
def config(small: Config) -> Config:
    return small.replace({"data.val": None, "data.test": None, "train.checkpoint_every": 9.0})


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Call ``act`` once, after that step."""
    step = Trainer.step

    def stepped(self: Trainer, batch: Batch) -> Any:
        parts = step(self, batch)
        if self.step_count == number:
            act()
        return parts

    monkeypatch.setattr(Trainer, "step", stepped)
    monkeypatch.setattr(stop_module, "POLL_SECONDS", 0.0)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_resume_gives_the_same_weights(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(config, run="whole")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 7, terminate)
        with pytest.raises(TrainingStopped, match=r"stopped by SIGTERM after step \d"):
            fit(config, run="one")
    assert signal.getsignal(signal.SIGTERM) is before
    assert status(config, "one") == ("stopped", "KILLED")
    saved = list(Path(str(config.ray.storage)).glob("one/step-*/meta.json"))
    assert [path.parent.name for path in saved] == ["step-00000007"]
    resumed = fit(config, run="one", resume="must")
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.ema_sha256 == whole.ema_sha256
    tags = connect(resumed.tracking_uri).get_run(resumed.run_id).data.tags
    history = [text for key, text in sorted(tags.items()) if key.startswith("history.")]
    assert "saved after step 7: stopped by SIGTERM" in history
    assert "resumed after stopped" in history


@pytest.mark.parametrize("step", [5, 10])
def test_sigterm_during_an_evaluation_stops_after_it(
    small: Config, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = fit(small, run="whole")
    validate = worker.validate

    def interrupted(
        split: str, uri: str, content: str, trainer: Trainer, log: RunLog
    ) -> worker.Validation:
        if trainer.step_count == step:
            terminate()
        return validate(split, uri, content, trainer, log)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "validate", interrupted)
        with pytest.raises(TrainingStopped, match=f"stopped by SIGTERM after step {step};"):
            fit(small, run="one")
    assert status(small, "one") == ("stopped", "KILLED")
    resumed = fit(small, run="one", resume="must")
    assert (resumed.metrics, resumed.weights_sha256) == (whole.metrics, whole.weights_sha256)


def test_stop_without_a_checkpoint_is_a_failure(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "RETRY_SECONDS", (0.01, 0.01))
    full = lambda uri, check: FullDiskStore(Path(uri), capacity=0)  # noqa: E731
    monkeypatch.setattr("pipeline.training.fit.CheckpointStore", full)
    at_step(monkeypatch, 7, terminate)
    with pytest.raises(TrainingFailed, match="after step 7, but .*No space left on device"):
        fit(config, run="one")
    assert status(config, "one") == ("failed", "FAILED")
    client = connect(str(config.tracking.uri))
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert not [text for text in run.data.tags.values() if text.startswith("saved after")]


def test_ctrl_c_ends_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    # A shell that starts tests in the background makes them ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(config, run="one")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status(config, "one") == ("stopped", "KILLED")


def test_second_sigterm_ends_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, lambda: (terminate(), terminate()))
    with pytest.raises(KeyboardInterrupt):
        fit(config, run="one")
    assert status(config, "one") == ("stopped", "KILLED")


def test_stopped_job_exits_like_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise TrainingStopped("stopped by SIGTERM after step 7")

    monkeypatch.setattr("pipeline.training.fit.fit", stopped)
    with pytest.raises(SystemExit) as end:
        run_job(train.main, [])
    assert end.value.code == 143


def test_non_finite_gradient_saves_its_batch_and_keeps_the_last_checkpoint(
    config: Config,
) -> None:
    config = config.replace({"train.lr": 1e30, "train.warmup_steps": 0})
    config = config.replace({"train.checkpoint_steps": 1})
    with pytest.raises(TrainingFailed, match="not finite at step 1.*saved in .*not-finite"):
        fit(config, run="one")
    folder = Path(str(config.ray.storage)) / "one"
    (file,) = folder.glob("not-finite/*")
    assert file.name == "step-00000001-rank-0.pt"
    dumped = torch.load(file, weights_only=True)
    assert dumped["images"].shape == (4, 3, 64, 64) and len(dumped["image_ids"]) == 4
    assert [path.parent.name for path in folder.glob("step-*/meta.json")] == ["step-00000001"]
    assert status(config, "one") == ("failed", "FAILED")


def test_lower_learning_rate_on_resume_is_recorded(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config = config.replace({"train.lr": 1e30, "train.warmup_steps": 8, "train.clip_norm": 0.001})
    config = config.replace({"train.checkpoint_steps": 1})
    with pytest.raises(TrainingFailed, match=r"not finite .* lower train\.lr or train\.clip_norm"):
        fit(config, run="one")
    folder = Path(str(config.ray.storage)) / "one"
    for checkpoint in folder.glob("step-*"):  # the weights are as good as lost
        shutil.rmtree(checkpoint)
    result = fit(config.replace({"train.lr": 0.01}), run="one", resume="must")
    change = "train.lr = 1e+30, now 0.01"
    assert f"run 'one' had {change}" in caplog.text
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["interventions"]) == ("finished", [change])
    tags = connect(result.tracking_uri).get_run(result.run_id).data.tags
    assert f"resumed after failed; {change}" in tags.values()


def test_non_finite_gradients_are_skipped_up_to_a_limit(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    update = Trainer._update

    def broken(self: Trainer) -> torch.Tensor:
        if self.step_count in (3, 5):
            next(self.detector.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return update(self)

    monkeypatch.setattr(Trainer, "_update", broken)
    with pytest.raises(TrainingFailed, match="not finite at step 5"):
        fit(config.replace({"train.skip_non_finite": 1}), run="one")
    assert "not finite at step 3: skipped (1 of at most 1" in caplog.text
    result = fit(config.replace({"train.skip_non_finite": 2}), run="one")
    assert result.total_steps == 10
    folder = Path(str(config.ray.storage)) / "one"
    names = sorted(path.name for path in folder.glob("not-finite/*"))
    assert names == ["step-00000003-rank-0.pt", "step-00000005-rank-0.pt"]
    client = connect(result.tracking_uri)
    skipped = client.get_metric_history(result.run_id, "train/skipped_steps")
    assert {(point.step, point.value) for point in skipped} == {(4, 1.0), (6, 2.0)}
    losses = client.get_metric_history(result.run_id, "train/loss")
    assert {point.step for point in losses} == {1, 2, 3, 5, 7, 8, 9, 10}
