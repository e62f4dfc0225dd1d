"""Documents of a sweep, its former trials, and what it resumes from."""

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.errors import LeaseLostError, OutageError, UserError
from pipeline.sweep.documents import Trial, TrialTable
from pipeline.sweep.results import make_table
from pipeline.sweep.space import SearchSpace
from pipeline.sweep.sweep import _prune_trials, sweep
from pipeline.sweep.warm_start import former_trials
from pipeline.tracking import create_run
from pipeline.training.run_record import RunRecord
from pipeline.trials.ending import child_runs, closed_on_interrupt
from pipeline.trials.trial import TrialSettings, has_checkpoint
from pipeline.trials.trial_records import TrialRecord, TrialRecords, TrialState
from tests.pipeline.checkpoints.examples import example_meta
from tests.pipeline.sweep.answer.outcomes import outcome_of
from tests.pipeline.training.test_fit import status
from tests.pipeline.training.test_lease_of_run import take_over
from tests.stores import new_store


@pytest.fixture
def small(small: Config) -> Config:
    """Return a small training whose workers Ray would start."""
    return small.replace({"ray.enabled": True})


def test_table_survives_a_file() -> None:
    trials = [
        Trial("a1", {"assign.sigma": 2.5, "assign.name": "atss"}, 0.5, 2.0, "finished", "run"),
        Trial("b2", {"assign.sigma": 3.0, "assign.name": "atss"}, None, 0.0, "failed", None),
    ]
    data = TrialTable(trials=trials).encode()
    assert TrialTable.parse(data, "trials.json").trials == trials


def test_settings_of_a_trial_survive_their_way() -> None:
    config = Config.from_dict({"ray": {"workers": [1, 2]}, "data": {"val": "/val"}})
    settings = TrialSettings(
        config=config, sweep="s", storage="/runs/s", tracking_uri="sqlite://", parent_run_id="abc"
    )
    content = settings.model_dump(mode="json")
    assert TrialSettings.from_content(content, "settings") == settings


@pytest.mark.parametrize("hangs", [True, False])
def test_sweep_that_was_taken_over_ends_and_changes_nothing(
    small: Config, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    space = {"train.lr": {"uniform": [0.01, 0.1]}}
    config = small.replace({"ray.lease_seconds": 1.0, "sweep.space": space})
    uri, began = f"{config.ray.storage}/one", time.monotonic()

    def tune(
        _settings: object, _searcher: object, _scheduler: object, limits: Any, *_: Any
    ) -> None:
        take_over(uri)
        until = time.monotonic() + 60
        while time.monotonic() < until and (hangs or not limits.stop_all()):
            time.sleep(0.05)

    # Of a hanging Tune, and in a job that a shell has started in the background.
    handler = signal.default_int_handler if hangs else signal.SIG_IGN
    before = signal.signal(signal.SIGINT, handler)
    module = sys.modules[sweep.__module__]  # the package has a function of that name
    monkeypatch.setattr(module, "run_trials", tune)
    monkeypatch.setattr(module, "ray_cluster", lambda *_, **__: contextlib.nullcontext())
    try:
        with pytest.raises(LeaseLostError, match="run 'one' was taken over by process 1 on else"):
            sweep(config, run="one")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 50
    assert status(config, "one") == ("running", "RUNNING")


def test_failed_trials_are_never_the_best() -> None:
    records = TrialRecords("/nowhere")
    for name, state, score in (
        ("t0001", "failed", 0.9),
        ("t0002", "stopped early", 0.7),
        ("t0003", "finished", 0.5),
        ("t0004", "finished", 0.6),
    ):
        record = TrialRecord(name=name, params={}).with_score(1.0, score)
        records.all[name] = record.model_copy(update={"state": state})
    table = make_table(Config(), records)
    assert [row.name for row in table] == ["t0004", "t0003", "t0002", "t0001"]


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """Return the folder of a sweep over the learning rate, whose last trial was not finished."""
    space = {"train.lr": {"uniform": [0.01, 1.0]}}
    config = Config.from_dict({"sweep": {"space": space}, "train": {"momentum": 0.8}})
    record = RunRecord(str(tmp_path), "former")
    record.check_storage()
    record.write("a1", "finished", config)
    records = TrialRecords(record.uri)
    for number, state in ((1, "finished"), (2, "finished"), (3, "unfinished")):
        one = TrialRecord(name=f"t000{number}", params={"train.lr": 0.1 * number})
        one = one.with_score(1.0, 0.25 * number)
        records.save(one.model_copy(update={"state": state}))
    return tmp_path / "former"


def test_former_trials_are_learned_with_all_their_values(former: Path) -> None:
    space = {"train.lr": {"uniform": [0.01, 0.15]}, "train.momentum": {"choice": [0.8, 0.9]}}
    config = Config.from_dict({"sweep": {"space": space, "warm_start": str(former)}})
    found = former_trials(config, SearchSpace(config))
    # The second is outside of the range, and the third was not finished.
    assert found == [({"train.lr": 0.1, "train.momentum": 0.8}, 0.25)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sweep.metric": "val/ap50"}, r"ranked by val/ap \(max\), these by val/ap50"),
        ({"evaluate.protocol": "voc"}, "another evaluate.protocol"),
        ({"sweep.space": {"train.momentum": {"uniform": [0.1, 0.2]}}}, "none of its trials is in"),
        ({"sweep.warm_start": "/nowhere"}, "not the folder of a sweep"),
    ],
)
def test_former_sweep_that_is_of_no_use_is_rejected(
    former: Path, change: dict[str, object], expected: str
) -> None:
    space = {"train.lr": {"uniform": [0.01, 1.0]}}
    tree = {"sweep": {"space": space, "warm_start": str(former)}}
    config = Config.from_dict(tree).replace(change)
    with pytest.raises(UserError, match=expected):
        former_trials(config, SearchSpace(config))


def test_metric_without_an_interval_is_not_confirmed(small: Config) -> None:
    space = {"train.lr": {"uniform": [0.01, 0.1]}}
    config = small.replace({"sweep.space": space, "sweep.metric": "val/ar_10"})
    with pytest.raises(UserError, match=r"'val/ar_10' has no interval .* set sweep.confirm.points"):
        sweep(config, run="one")


def test_trials_without_a_record_of_their_sweep_are_not_adopted(small: Config) -> None:
    space = {"train.lr": {"uniform": [0.01, 0.1]}}
    config = small.replace({"sweep.space": space})
    TrialRecords(f"{config.ray.storage}/one").save(TrialRecord(name="t0001", params={"x.y": 1}))
    with pytest.raises(UserError, match="contains trials of a sweep without run.json"):
        sweep(config, run="one")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"sweep.space": {"assign.sigm": {"uniform": [1, 2]}}},
            "sigm: there is no such field; did",
        ),
        ({"sweep.space": {"train.lr": {"uniform": [-1, 2]}}}, "sweep.space.train.lr: train.lr"),
        (
            {"sweep.space": {"train.lr": {"uniform": [0.1, 1], "when": {"model.neck": "fssd"}}}},
            "when names model.neck, which is not in sweep.space",
        ),
        ({"sweep.space": {"train.epochs": {"int": [1, 9]}}}, "train.epochs: asha compares"),
        (
            {"sweep.space": {"train.batch_size": {"int": [2, 8]}}, "train.min_steps": 100},
            "train.batch_size: with train.min_steps, trials would have different epochs",
        ),
        ({"sweep.points": [{"train.lr": 0.5}]}, r"sweep.points\[0\]: train.lr = 0.5 is not one"),
        ({"sweep.points": [{"train.momentum": 0.5}]}, "train.momentum is not in sweep.space"),
        ({"sweep.metric": "val/map"}, "sweep.metric 'val/map' is not logged with evaluate.proto"),
        (
            {"sweep.metric": "val/ap_small", "evaluate.protocol": "voc"},
            "not logged with evaluate.protocol voc; choose from: val/ap, val/ap50, val/ap75",
        ),
        ({"ray.enabled": False}, "ray.enabled is false; the trials of a sweep run in Ray"),
        ({"data.val": None}, "data.val is not set; a sweep compares its trials on it"),
        ({"sweep.warm_start": "/nowhere"}, "sweep.warm_start /nowhere: not the folder of a sweep"),
        (
            {"sweep.space": {"loss.class_weights": {"choice": [{}, {"dog": 2.0}]}}},
            "loss.class_weights: unknown class 'dog'; known: ",
        ),
        ({"train.batch_size": 1, "ray.workers": 2}, "train.batch_size 1 is smaller than the 2"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_started(
    small: Config, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr(
        sys.modules[sweep.__module__], "ray_cluster", Mock(side_effect=AssertionError)
    )
    config = small.replace({"sweep.space": {"train.lr": {"uniform": [0.01, 0.1]}}})
    with pytest.raises(UserError, match=expected) as caught:
        sweep(config.replace(change), run="one")
    assert "\n" not in str(caught.value)
    assert not Path(config.ray.storage_uri(), "one", "run.json").exists()


def test_weights_of_every_trial_are_checked_first_and_once(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[sweep.__module__]
    checked: list[tuple[str, str | None]] = []

    def check_start(tried: Config, *_: object) -> None:
        checked.append((tried.model.backbone, tried.model.init))
        if tried.model.init:
            raise OutageError("resnet18-x.pth cannot be downloaded")

    monkeypatch.setattr(module, "check_start", check_start)
    monkeypatch.setattr(module, "ray_cluster", Mock(side_effect=AssertionError))
    space = {
        "model.backbone": {"choice": ["slim", "resnet18"]},
        "model.init": {"choice": [None, "imagenet"]},
    }
    expected = "sweep.space: model.backbone = 'resnet18', model.init = 'imagenet': resnet18-x.pth "
    with pytest.raises(OutageError, match=expected):
        sweep(small.replace({"sweep.space": space, "ray.enabled": True}), run="one")
    assert checked == [("slim", None), ("resnet18", None), ("resnet18", "imagenet")]
    assert not Path(small.ray.storage_uri(), "one", "run.json").exists()


def test_folder_of_another_recipe_is_rejected_with_the_difference(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(sys.modules[sweep.__module__], "ray_cluster", stopped)
    config = small.replace({"sweep.space": {"train.lr": {"uniform": [0.01, 0.1]}}})
    with pytest.raises(KeyboardInterrupt):
        sweep(config, run="one")
    for change in (
        {"sweep.space": {"train.lr": {"uniform": [0.01, 0.2]}}},
        {"train.momentum": 0.5},
        {"sweep.reduction": 4},
    ):
        with pytest.raises(UserError, match=f"run 'one' was started with {next(iter(change))} = "):
            sweep(config.replace(change), run="one")
    # A sweep may be extended.
    with pytest.raises(KeyboardInterrupt):
        sweep(config.replace({"sweep.trials": 20}), run="one")


@pytest.mark.parametrize("limited", [False, True])
def test_checkpoints_of_paused_trials_are_kept_where_a_limit_ended_the_sweep(
    tmp_path: Path, limited: bool
) -> None:
    states: list[TrialState] = ["finished", "stopped early", "failed"]
    for state in states:
        tensors = {"model": {"x": torch.zeros(2)}}
        CheckpointStore(tmp_path / state).save(tensors, example_meta(1, ap=0.5))
    trials = [Trial(state, {}, 0.5, 1.0, state, None, low=0.4) for state in states]
    _prune_trials(trials, "default", str(tmp_path), keep_paused=limited)
    kept = {state for state in states if has_checkpoint(str(tmp_path), state)}
    assert kept == ({"stopped early", "failed"} if limited else {"failed"})


def test_checkpoint_of_a_trial_that_could_not_be_scored_is_kept(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "t0001").save({"model": {"x": torch.zeros(2)}}, example_meta(1))
    trials = [Trial("t0001", {}, 0.5, 1.0, "finished", None)]
    _prune_trials(trials, "default", str(tmp_path), keep_paused=False)
    assert has_checkpoint(str(tmp_path), "t0001")


def test_seconds_of_a_trial_count_its_batches() -> None:
    records = TrialRecords("/nowhere")
    record = TrialRecord(name="t0001", params={"train.batch_size": 64}).with_score(2.0, 0.5)
    records.all["t0001"] = record
    config = Config.from_dict({"train": {"batch_size": 8}})
    outcome = outcome_of(0.5).model_copy(update={"seconds_per_step": 1.0})
    (row,) = make_table(config, records, {}, {"t0001": outcome}, 800.0)
    assert row.seconds == 200.0  # 2 epochs of 100 steps


def test_interrupted_sweep_closes_the_runs_of_its_trials(small: Config, tmp_path: Path) -> None:
    uri = new_store(tmp_path / "store")
    parent = create_run(uri, small, "search")
    create_run(uri, small, "t0001", {"trial": "t0001"}, parent)
    record = RunRecord(str(tmp_path), "search")
    record.check_storage()
    records = TrialRecords(record.uri)
    records.save(TrialRecord(name="t0001", params={}))
    known = [(records, record.uri)]
    with (
        pytest.raises(KeyboardInterrupt),
        closed_on_interrupt(record, uri, parent, known),
    ):
        raise KeyboardInterrupt
    assert child_runs(uri, parent)["t0001"].info.status == "KILLED"
