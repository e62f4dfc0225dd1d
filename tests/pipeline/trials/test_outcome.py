"""The outcome of a trial: as its training scored it, stored, and made again where it is damaged."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config, RayConfig
from pipeline.distributed.ray_cluster import ray_cluster
from pipeline.errors import UserError
from pipeline.evaluation.postprocessing.matcher import SettingsMatcher
from pipeline.evaluation.postprocessing.settings import Settings
from pipeline.evaluation.protocol import score
from pipeline.metrics.bootstrap import bootstrap
from pipeline.storage.folder import join
from pipeline.training.fit import fit
from pipeline.training.stop import StopSignal
from pipeline.trials.outcome import load_matches, load_predictions, outcomes
from pipeline.trials.outcome_record import (
    MATCHES,
    OUTCOME,
    PREDICTIONS,
    TrialOutcome,
    stored_outcome,
)
from pipeline.trials.score_trial import score_trial, selected_checkpoint
from pipeline.trials.training_figures import training_figures
from pipeline.trials.trial import TrialSettings
from pipeline.trials.trial_records import TrialRecord, TrialRecords
from tests.stores import new_store

Trial = tuple[Config, str, str]  # config, storage and name


@pytest.fixture(scope="module")
def trained(scenes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Train once, with unusual settings of evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    config = Config.from_dict(
        {
            "data": {"train": scenes["train"], "val": scenes["val"], "loader_workers": 0},
            "model": {"image_size": 64},
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "log_every": 1,
                "warmup_steps": 2,
                "precision": "fp32",  # an AP above 0, whatever the CPU computes in
            },
            "evaluate": {"batch_size": 4, "nms_iou": 0.6, "max_detections": 30},
            "tracking": {"uri": new_store(folder)},
            "ray": {"enabled": False, "storage": str(folder / "runs")},
        }
    )
    fit(config, run="t0001")
    return config


@pytest.fixture
def trial(trained: Config, tmp_path: Path) -> Trial:
    """Return a copy of the training."""
    shutil.copytree(str(trained.ray.storage), tmp_path / "runs")
    return trained, str(tmp_path / "runs"), "t0001"


def test_outcome_has_the_score_of_the_training(trial: Trial) -> None:
    config, storage, name = trial
    saved = selected_checkpoint(storage, name)
    assert saved is not None and saved.meta.metrics
    figures = training_figures(str(config.tracking.uri), storage, name, 4)
    outcome = score_trial(config, storage, name, figures)
    expected = {key.removeprefix("val/"): value for key, value in saved.meta.metrics.items()}
    assert outcome.metrics == expected and outcome.metrics["ap"] > 0
    # The matches give the same score, to the last bit.
    matches = load_matches(storage, name)
    classes = saved.meta.classes
    again = score(matches, classes, "coco")
    assert again.metrics == expected and again.per_class == outcome.per_class
    assert list(matches.image_ids) == sorted(matches.image_ids) and matches.images == 6
    interval = bootstrap(matches, len(classes)).interval()
    assert (interval.low, interval.high) == (outcome.low, outcome.high)
    assert outcome.low <= outcome.metrics["ap"] <= outcome.high
    assert outcome.epoch == saved.meta.epoch and outcome.step == saved.step
    # From the run of the training.
    assert outcome.seconds_per_step is not None and 0 < outcome.seconds_per_step < 60
    assert outcome.health == figures.health and "objects_without_cls_positive" in outcome.health
    found = outcome.postprocessing
    assert found.before.settings == Settings(0.6, False, 30)
    assert found.before.metrics == expected
    assert found.best.metrics["ap"] >= expected["ap"] and found.score_thresholds
    # Nothing is made again, also after the checkpoints were deleted.
    store = CheckpointStore(join(storage, name))
    for item in store.saved():
        store.discard(item.step)
    assert selected_checkpoint(storage, name) is None
    assert stored_outcome(storage, name, None, outcome.data) == outcome
    assert stored_outcome(storage, name, None, "other") is None
    with pytest.raises(UserError, match="no evaluated checkpoint"):
        score_trial(config, storage, name)


def test_damaged_and_outdated_outcomes_are_made_again(trial: Trial) -> None:
    config, storage, name = trial
    outcome = score_trial(config, storage, name)
    assert outcome.seconds_per_step is None and outcome.health == {}
    saved = selected_checkpoint(storage, name)
    assert saved is not None
    folder = Path(storage) / name
    content = {file: (folder / file).read_bytes() for file in (OUTCOME, MATCHES, PREDICTIONS)}

    def known(checkpoint: bool = True) -> TrialOutcome | None:
        return stored_outcome(storage, name, saved if checkpoint else None, outcome.data)

    for damaged in (None, content[MATCHES][:-1], content[MATCHES][:-1] + b"?"):
        if damaged is None:
            (folder / MATCHES).unlink()
        else:
            (folder / MATCHES).write_bytes(damaged)
        with pytest.raises(UserError, match=r"t0001/matches.safetensors (is damaged|cannot be re)"):
            load_matches(storage, name)
        assert known(checkpoint=False) == outcome
        assert (folder / MATCHES).read_bytes() == content[MATCHES]
    (folder / PREDICTIONS).write_bytes(content[PREDICTIONS][:-1])
    assert known() is None and known(checkpoint=False) == outcome
    (folder / MATCHES).unlink()
    assert known(checkpoint=False) is None
    for text in ("{", json.dumps({**json.loads(content[OUTCOME]), "step": "x"})):
        (folder / OUTCOME).write_text(text)
        assert known() is None
        with pytest.raises(UserError, match=r"t0001 has no outcome of a trial; run its sweep"):
            load_predictions(storage, name)
    assert score_trial(config, storage, name) == outcome == known()
    assert {file: (folder / file).read_bytes() for file in content} == content
    other = saved.meta.model_copy(update={"ema_sha256": "0" * 64})
    assert stored_outcome(storage, name, type(saved)(saved.name, other), outcome.data) is None


def test_predictions_are_stored_without_loss(trial: Trial) -> None:
    config, storage, name = trial
    score_trial(config, storage, name)
    raw = load_predictions(storage, name)
    table = SettingsMatcher(raw, [(0.6, False)]).match(Settings(0.6, False, 30))
    stored = load_matches(storage, name)
    for field in ("box", "score", "matched", "object_box", "image_ids"):
        one, two = getattr(table, field), getattr(stored, field)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_changed_data_are_not_scored(trial: Trial, scenes: dict[str, str]) -> None:
    config, storage, name = trial
    with pytest.raises(UserError, match=r"data.val .* has changed since its training"):
        score_trial(config.replace({"data.val": scenes["test"]}), storage, name)


@pytest.mark.integration
def test_outcomes_are_made_by_tasks_of_ray(
    trial: Trial, scenes: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    config, storage, name = trial
    for other in ("t0002", "t0003"):
        shutil.copytree(join(storage, name), join(storage, other))
    records = TrialRecords(storage)
    records.save(TrialRecord(name="t0003", params={"data.val": scenes["test"]}))
    records.save(TrialRecord(name="t0004", params={}, state="failed", error="boom"))
    settings = TrialSettings(
        config=config,
        sweep="sweep",
        storage=storage,
        tracking_uri=str(config.tracking.uri),
        parent_run_id="",
    )
    stop = StopSignal()
    capfd.readouterr()
    with ray_cluster(RayConfig(workers=1)):
        found = outcomes(settings, ["t0002", "t0004", "t0001", "t0003"])
        assert list(found) == ["t0002", "t0001"]
        assert found["t0001"] == found["t0002"] and found["t0001"].seconds_per_step
        alone = score_trial(config, storage, name)
        assert found["t0001"].files == alone.files and found["t0001"].metrics == alone.metrics
        err = capfd.readouterr().err
        assert [line for line in err.splitlines() if "not scored" in line] == [
            "not scored, since no evaluated checkpoint is left: trial t0004",
            f"trial t0003 is not scored: data.val {scenes['test']} has changed since its training",
        ]
        # Nothing is scored after a stop, and all CPUs are free.
        (Path(storage) / name / OUTCOME).unlink()
        stop.request("stopped by SIGTERM")
        assert outcomes(settings, [name], stop) == {}
        deadline = time.monotonic() + 20
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert not (Path(storage) / name / OUTCOME).exists()
        assert "Error" not in capfd.readouterr().err
