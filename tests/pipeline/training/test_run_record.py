"""The record of a run: typed, versioned, and readable where earlier versions wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.training.error_hints import UnrecoverableFailure
from pipeline.training.run_record import RunRecord

CONFIG = Config.from_dict({"train": {"batch_size": 4}})


def record_with(folder: Path, name: str, content: str) -> RunRecord:
    (folder / "one").mkdir()
    (folder / "one" / name).write_text(content)
    return RunRecord(str(folder), "one")


def test_record_of_the_first_format_is_resumed(tmp_path: Path) -> None:
    content = {"run_id": "abc", "status": "failed", "config": CONFIG.recorded()}
    record = record_with(tmp_path, "run.json", json.dumps(content))
    assert record.resumable_run_id("must", CONFIG) == "abc"


def test_written_record_is_read(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    assert record.read() is None
    record.write("abc", "stopped", CONFIG)
    info = record.read()
    assert info is not None
    assert (info.run_id, info.status, info.config) == ("abc", "stopped", CONFIG.recorded())
    assert record.resumable_run_id("auto", CONFIG) == "abc"


def test_record_has_no_secrets_and_one_that_has_is_resumed(tmp_path: Path) -> None:
    init = {"init": "https://host/w.pth?token=S3cret", "init_sha256": "0" * 64}
    config = Config.from_dict({"model": init})
    # As an earlier version wrote it.
    content = {"run_id": "abc", "status": "failed", "config": config.recorded()}
    record = record_with(tmp_path, "run.json", json.dumps(content))
    assert record.resumable_run_id("must", config) == "abc"
    record.write("abc", "running", config)
    record.write_failure(UserError("cannot fetch https://host/w.pth?token=S3cret"))
    written = [path.read_text() for path in (tmp_path / "one").glob("*.json")]
    assert "token=***" in written[0] and "token=***" in written[1]
    assert "S3cret" not in "".join(written)
    assert record.resumable_run_id("must", config) == "abc"


def test_interventions_of_all_resumes_are_kept(tmp_path: Path) -> None:
    changes = ({"train.lr": 0.01}, {"train.lr": 0.01, "train.clip_norm": 1.0})
    for config in (CONFIG, *(CONFIG.replace(change) for change in changes)):
        record = RunRecord(str(tmp_path), "one")
        record.check_storage()
        record.resumable_run_id("auto", config)
        for status in ("running", "failed"):
            record.write("abc", status, config)
    info = record.read()
    assert info is not None
    assert info.interventions == ["train.lr = 0.05, now 0.01", "train.clip_norm = 10.0, now 1.0"]
    with pytest.raises(UserError, match="may change: sweep$"):
        record.resumable_run_id("auto", CONFIG, ["sweep"])


def test_run_from_before_anchors_were_configured_has_those_of_the_paper(tmp_path: Path) -> None:
    tree = CONFIG.recorded()
    tree["model"] = {k: v for k, v in tree["model"].items() if not k.startswith("anchor_")}
    content = {"run_id": "abc", "status": "failed", "config": tree}
    record = record_with(tmp_path, "run.json", json.dumps(content))
    assert record.resumable_run_id("must", CONFIG) == "abc"
    for field, value in (("anchor_base", 12.0), ("anchor_scales", [1.0]), ("anchor_ratios", [2])):
        with pytest.raises(UserError, match=rf"was started with model\.{field} = .*, now "):
            record.resumable_run_id("must", CONFIG.replace({f"model.{field}": value}))


def test_resumed_run_keeps_the_frozen_stages_of_its_start(tmp_path: Path) -> None:
    config = CONFIG.replace({"model.init": "imagenet", "model.backbone": "efficientnet_lite0"})
    record = record_with(tmp_path, "run.json", "{}")
    for stages in (2, 0):
        started = config.replace({"model.freeze_stages": stages})
        record.write("abc", "failed", started)
        assert record.recorded_freezing(config) == {"model.freeze_stages": stages}
        resumed = config.replace(record.recorded_freezing(config))
        assert record.resumable_run_id("must", resumed) == "abc"
        assert record.recorded_freezing(config.replace({"model.freeze_stages": 1})) == {}
    # A sweep leaves the number to its trials.
    record.write("abc", "failed", config)
    assert record.recorded_freezing(config) == {}
    assert record.resumable_run_id("must", config) == "abc"


def test_run_from_before_optimizers_were_configured_had_sgd(tmp_path: Path) -> None:
    tree = CONFIG.recorded()
    tree["train"] = {
        k: v for k, v in tree["train"].items() if k not in ("optimizer", "backbone_lr")
    }
    assert (tree["train"]["lr"], tree["train"]["weight_decay"]) == (0.05, 5e-4)
    content = {"run_id": "abc", "status": "failed", "config": tree}
    record = record_with(tmp_path, "run.json", json.dumps(content))
    assert record.resumable_run_id("must", CONFIG) == "abc"
    assert not record.interventions
    for field, value in (("optimizer", "adamw"), ("backbone_lr", 0.1)):
        with pytest.raises(UserError, match=rf"was started with train\.{field} = .*, now "):
            record.resumable_run_id("must", CONFIG.replace({f"train.{field}": value}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"format_version": 99, "run_id": "abc"}', "run.json has format 99, written by a newer"),
        ('{"run_id": "abc", "status"', "run.json: not valid JSON"),
        ('{"run_id": "abc", "status": "asleep", "config": {}}', "run.json: status: .*'running'"),
    ],
)
def test_newer_or_damaged_record_is_one_line(tmp_path: Path, content: str, expected: str) -> None:
    record = record_with(tmp_path, "run.json", content)
    with pytest.raises(UserError, match=expected) as caught:
        record.resumable_run_id("auto", CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [UserError("a mistake"), UnrecoverableFailure("a failure")])
def test_recorded_failure_keeps_kind_and_reason(tmp_path: Path, error: Exception) -> None:
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    assert record.read_failure() is None
    record.write_failure(error)
    read = record.read_failure()
    assert type(read) is type(error) and str(read) == str(error)
    record.clear_failure()
    assert record.read_failure() is None


def test_failure_of_the_first_format_is_read(tmp_path: Path) -> None:
    record = record_with(tmp_path, "failure.json", '{"kind": "user", "reason": "a mistake"}')
    assert isinstance(record.read_failure(), UserError)


def test_run_of_before_keeps_a_loss_that_did_not_follow_the_assigner(tmp_path: Path) -> None:
    config = Config().replace({"assign.name": "mutual_guidance_soft"})
    former = config.replace(
        {
            "loss.classification": "focal",
            "loss.classification_weight": 1.0,
            "loss.poly": 1.0,
            "loss.normaliser": "positives",
            "loss.overlap": "none",
        }
    )
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    assert record.recorded_assignment(config) == {}
    record.write("abc", "stopped", former)
    kept = config.replace(record.recorded_assignment(config))
    assert kept.loss == former.loss and record.resumable_run_id("auto", kept) == "abc"
    given = config.replace({"loss.overlap": "giou"})
    assert "loss.overlap" not in record.recorded_assignment(given)


def test_run_of_before_keeps_the_class_loss_of_a_rival(tmp_path: Path) -> None:
    config = Config().replace({"assign.name": "task_aligned"})
    assert config.recorded()["loss"]["poly"] == 0
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    record.write("abc", "stopped", config.replace({"loss.poly": 1.0}))
    kept = config.replace(record.recorded_assignment(config))
    assert kept.loss.poly == 1 and record.resumable_run_id("auto", kept) == "abc"


def former_record(tmp_path: Path, config: Config, *absent: str) -> RunRecord:
    """Return the record of a run that was started before the fields existed."""
    tree = config.recorded()
    for field in absent:
        section, _, name = field.partition(".")
        del tree[section][name]
    content = {"format_version": 2, "run_id": "abc", "status": "stopped", "config": tree}
    return record_with(tmp_path, "run.json", json.dumps(content))


@pytest.mark.parametrize(
    ("assigner", "field", "default", "former", "given"),
    [
        ("task_aligned", "assign.static_fraction", 1 / 3, 0.0, 0.5),
        ("sim_ota", "assign.iou_targets", True, False, True),
        ("task_aligned", "loss.normaliser", "targets", "positives", "targets"),
        ("mutual_guidance_soft", "loss.normaliser", "positives", "positives", "targets"),
    ],
)
def test_run_of_before_keeps_its_assignment_without_added_options(
    tmp_path: Path, assigner: str, field: str, default: Any, former: Any, given: Any
) -> None:
    section, _, name = field.partition(".")
    config = Config().replace({"assign.name": assigner})
    assert config.recorded()[section][name] == default
    record = former_record(tmp_path, config, field)
    kept = config.replace(record.recorded_assignment(config))
    assert getattr(getattr(kept, section), name) == former
    assert record.resumable_run_id("auto", kept) == "abc"
    record.write("abc", "stopped", kept)
    again = config.replace(record.recorded_assignment(config))
    assert again == kept and record.resumable_run_id("auto", again) == "abc"
    other = config.replace({field: given})
    assert field not in record.recorded_assignment(other)
    with pytest.raises(UserError, match=f"{field} = {former!r}, now {given!r}"):
        record.resumable_run_id("auto", other)


def test_comparison_of_before_resumes_where_its_assigner_lacks_the_added_options(
    tmp_path: Path,
) -> None:
    config = Config()  # as it is given: a comparison and a sweep set the assigner of each trial
    record = former_record(tmp_path, config, "assign.iou_targets", "assign.static_fraction")
    assert not [name for name in record.recorded_assignment(config) if name.startswith("assign.")]
    assert record.resumable_run_id("auto", config) == "abc"


@pytest.mark.parametrize("assigner", ["mutual_guidance", "mutual_guidance_soft"])
@pytest.mark.parametrize("recorded", [True, False])
def test_run_of_before_resumes_where_an_option_of_another_assigner_became_its_own(
    tmp_path: Path, assigner: str, recorded: bool
) -> None:
    """Mutual Guidance has no former value of `static_fraction`: off is its default."""
    config = Config().replace({"assign.name": assigner})
    record = former_record(tmp_path, config, *([] if recorded else ["assign.static_fraction"]))
    assert config.recorded()["assign"]["static_fraction"] is None
    assert "assign.static_fraction" not in record.recorded_assignment(config)
    assert record.resumable_run_id("auto", config) == "abc"
    with pytest.raises(UserError, match="static_fraction = None, now 0.3"):
        record.resumable_run_id("auto", config.replace({"assign.static_fraction": 0.3}))


def test_run_keeps_the_recorded_default_of_an_added_option(tmp_path: Path) -> None:
    config = Config().replace({"assign.name": "task_aligned"})
    record = RunRecord(str(tmp_path), "one")
    record.check_storage()
    record.write("abc", "stopped", config)
    kept = config.replace(record.recorded_assignment(config))
    assert kept.assign.static_fraction == 1 / 3
    assert record.resumable_run_id("auto", kept) == "abc"


def test_sweep_of_before_froze_nothing_whatever_its_trials_start_from(tmp_path: Path) -> None:
    tree = CONFIG.recorded()
    del tree["train"]["optimizer"]
    content = {"run_id": "abc", "status": "failed", "config": tree}
    record = record_with(tmp_path, "run.json", json.dumps(content))
    assert record.recorded_freezing(CONFIG) == {"model.freeze_stages": 0}
    line = record.mixed_precision(CONFIG)
    assert line is not None and "a new --run name" in line
    assert record.mixed_precision(CONFIG.replace({"train.precision": "fp32"})) is None
    record.write("abc", "failed", CONFIG)  # of now
    assert record.recorded_freezing(CONFIG) == {}
    assert record.mixed_precision(CONFIG) is None
