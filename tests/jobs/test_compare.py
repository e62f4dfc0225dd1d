"""`jobs.compare` as a user runs it: refused mistakes, stopped and resumed, extended, with folds."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs import compare
from pipeline.comparison.arms import Arm
from pipeline.comparison.cells import CHANGEABLE
from pipeline.comparison.plan import check_folder, comparison_config, with_freezing
from pipeline.config import Config
from pipeline.data.shards.manifest import load_manifest, write_manifest
from pipeline.errors import UserError
from pipeline.pretrained.freezing import FEW_IMAGES
from pipeline.sweep.sweep import _checked
from pipeline.tracking import connect
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial_records import TrialRecords
from tests.jobs.commands import plain_lines, results, run
from tests.jobs.test_tune import started
from tests.pipeline.conftest import scenes, small  # noqa: F401

VARY = ("--vary", "assign.name=max_iou,atss")


def options(config: Config) -> list[str]:
    """Return the command line of a configuration, with Ray."""
    return [
        *(f"--data.train={config.data.train}", f"--data.val={config.data.val}"),
        *("--model.image_size=64", "--train.epochs=2", "--train.batch_size=4"),
        *(f"--tracking.uri={config.tracking.uri}", f"--ray.storage={config.ray.storage}"),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((*VARY, "--seeds", "0"), "--seeds 0: give 1 or more"),
        ((*VARY, "--folds", "1"), "--folds 1: give 2 or more"),
        ((*VARY, "--folds", "21", "--run", "c"), "--folds 21: data.train has 20 samples"),
        ((*VARY, "--data.val=null"), "data.val is not set; .* or give --folds K"),
        ((*VARY, "--train.patience=2"), "train.patience is 2; a comparison trains every arm"),
        ((*VARY, "--ray.enabled=false"), "ray.enabled is false"),
        ((*VARY, "--model.init=/no/such"), "/no/such"),
        (("--vary", "train.batch_size=1,2", "--ray.workers=2"), "batch_size 1 is smaller than"),
        (("--vary", "assign.nam=a,b"), "no such field; did you mean assign.name"),
        ((), "there is one arm only"),
    ],
)
def test_mistake_is_one_line_before_the_first_training(
    small: Config,  # noqa: F811
    more: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        compare.main([*options(small), *more])
    assert "\n" not in str(caught.value)


def test_arm_that_needs_an_upgraded_set_is_refused(
    small: Config,  # noqa: F811
    tmp_path: Path,
) -> None:
    older = tmp_path / "older"
    shutil.copytree(str(small.data.train), older)
    manifest = load_manifest(older).model_copy(update={"image_classes": None})
    write_manifest(manifest, older)
    config = small.replace({"data.train": str(older)})
    with pytest.raises(UserError, match=f"older: was made by .* jobs.shards upgrade {older}"):
        compare.main([*options(config), "--vary", "data.repeat_threshold=0,0.5"])
    space = {"data.repeat_threshold": {"uniform": [0.1, 0.5]}}
    with pytest.raises(UserError, match="older: was made by an earlier version"):
        _checked(config.replace({"sweep.space": space, "ray.enabled": True}))


def test_folds_freeze_what_a_training_on_all_images_does() -> None:
    start = {"model.init": "imagenet", "model.backbone": "resnet18"}
    for images, frozen in ((FEW_IMAGES - 1, 2), (FEW_IMAGES, 0)):
        arm = with_freezing(Config(), Arm("a", start), images)
        assert arm.params == {**start, "model.freeze_stages": frozen}
    for params in ({}, {**start, "model.freeze_stages": 1}):
        assert with_freezing(Config(), Arm("a", params), 5).params == params


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    config = Config.from_dict({"data": {"train": "/t", "val": "/v"}})
    record = RunRecord(str(tmp_path), "other")
    record.check_storage()
    record.write("a1", "finished", config)
    with pytest.raises(UserError, match="another run, which is not a comparison; choose another"):
        check_folder(record, TrialRecords(record.uri), resumed=True)


def test_recipe_of_a_folder_may_not_change_but_its_resources_may(tmp_path: Path) -> None:
    config = Config.from_dict({"data": {"train": "/t", "val": "/v"}})
    record = RunRecord(str(tmp_path), "c")
    record.check_storage()
    record.write("a1", "stopped", config)
    more = config.replace({"ray.cpus_per_worker": 0.5, "evaluate.every": 9.0, "data.prefetch": 1})
    assert record.resumable_run_id("auto", more, CHANGEABLE, extend=True) == "a1"
    for field, value in (("train.lr", 0.3), ("ray.workers", 2), ("evaluate.nms_iou", 0.9)):
        with pytest.raises(UserError, match=f"was started with {field} = .*, now {value}"):
            record.resumable_run_id("auto", config.replace({field: value}), CHANGEABLE)


def test_trainings_are_evaluated_once_at_the_end_of_the_longest_schedule() -> None:
    tree = {"data": {"train": "/t", "val": "/v", "test": "/x"}, "sweep": {"max_hours": 1.0}}
    arms = [Arm("a", {"train.epochs": 30.0}), Arm("b", {})]
    config = comparison_config(Config.from_dict(tree), arms, 0)
    assert (config.evaluate.every, config.sweep.max_hours, config.data.test) == (30.0, 0.0, None)
    assert comparison_config(Config.from_dict(tree), arms, 2).data.val is None
    # Not before the end of an arm that is lengthened to 1000 steps of 8 of 120 images.
    steps = [Arm("a", {"train.min_steps": 1000}), Arm("b", {})]
    assert comparison_config(Config.from_dict(tree), steps, 0).evaluate.every >= 1000 * 8 / 120


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_stopped_comparison_resumes_and_is_extended(folder: Path) -> None:
    """SIGTERM in the middle; then the same command, more seeds, and another arm."""
    recipe = ("--data.train", "shards/shapes-train", "--data.val", "shards/shapes-val")
    short = ("--model.image_size", "64", "--train.epochs", "2", "--data.loader_workers", "0")
    ray = ("--ray.cpus_per_worker", "0.4", "--sweep.concurrency", "1", "--run", "c")
    arguments = (*recipe, *short, *ray, *VARY)
    with started(folder, *arguments, "--seeds", "2", job="compare") as (process, lines):
        assert any("finished (1 ended)" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
        assert list(lines)[-1].startswith("stopped: the comparison was stopped by SIGTERM")
    done = run(folder, "compare", *arguments, "--seeds", "2")
    found = results(done)
    first = {name for row in found["table"] for name in row["trials"]}
    assert len(first) == 4 and trained(done.stderr) <= first and len(trained(done.stderr)) <= 3
    assert {row["name"] for row in found["table"]} == {"max_iou", "atss"}
    assert all(len(row["scores"]) == 2 and row["seconds_per_step"] for row in found["table"])
    assert len(found["pairs"]) == 1 and found["pairs"][0].keys() >= {"gain", "distinguishable"}
    assert Path(found["report"]).is_file()
    runs = connect(found["tracking_uri"]).search_runs(["1"])
    assert sorted(one.info.status for one in runs) == ["FINISHED"] * 5
    # Another arm and another seed: only what is new is trained.
    more = ("--vary", "assign.name=atss,max_iou,task_aligned", "--seeds", "2")
    done = run(folder, "compare", *arguments[: -len(VARY)], *more)
    rows = {row["name"]: row for row in results(done)["table"]}
    assert trained(done.stderr) == set(rows["task_aligned"]["trials"])
    stored = json.loads((folder / "runs" / "c" / "comparison.json").read_text())
    assert {row["name"] for row in stored["table"]} == set(rows)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_folds_pool_all_images(folder: Path) -> None:
    recipe = ("--data.train", "shards/shapes-train", "--data.loader_workers", "0")
    short = ("--model.image_size", "64", "--train.epochs", "1", "--ray.cpus_per_worker", "0.4")
    arguments = (*recipe, *short, *VARY, "--seeds", "1", "--folds", "2", "--run", "c")
    found: dict[str, Any] = results(run(folder, "compare", *arguments))
    assert [len(row["trials"]) for row in found["table"]] == [2, 2]
    stored = json.loads((folder / "runs" / "c" / "comparison.json").read_text())
    assert (stored["images"], stored["folds"]) == (16, 2)


def trained(stderr: str) -> set[str]:
    """Return the names of the trials that a command has started or resumed."""
    lines = [line.split() for line in plain_lines(stderr)]
    return {words[1] for words in lines if words[:1] == ["trial"] and "starts:" in words[2:3]} | {
        words[1] for words in lines if words[:1] == ["trial"] and "resumes" in words[2:3]
    }
