"""Test that any checkpoint of a run becomes a version, once."""

from pathlib import Path

import numpy as np
import pytest

from jobs import register
from pipeline.checkpoints.format import load_meta
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.model_evaluation import evaluate_model
from pipeline.metrics.calibration import fit_temperature
from pipeline.predict import load
from pipeline.registry import load_detector
from pipeline.tracking import connect
from pipeline.training.fit import fit
from tests.pipeline.conftest import scenes, small  # noqa: F401
from tests.stores import new_store


def test_checkpoints_of_a_run_become_versions(small: Config, tmp_path: Path) -> None:  # noqa: F811
    config = small.replace({"train.keep_checkpoints": 5, "train.checkpoint_steps": 5})
    result = fit(config, run="one")
    run = Path(result.checkpoint).parent
    option = f"--tracking.uri={result.tracking_uri}"
    best = register.main([f"--run={run}", "--name=shapes", option])
    again = register.main([f"--run={result.checkpoint}", "--name=shapes", option])
    assert again == best
    assert register.main([f"--run=file://{run}", "--name=shapes", option]) == best
    others = [folder for folder in run.glob("step-*") if str(folder) != result.checkpoint]
    other = register.main([f"--run={others[0]}", "--name=shapes", option])
    assert {best["version"], other["version"]} == {1, 2}

    client = connect(result.tracking_uri)
    assert client.get_model_version("shapes", "1").run_id == result.run_id
    assert client.get_model_version_by_alias("shapes", "candidate").version == 2
    found = client.get_run(result.run_id).data
    assert found.metrics["best/ap"] == pytest.approx(result.metrics["val/ap"])
    assert found.tags["best.step"] == str(result.best_step)
    assert found.tags["best.checkpoint"] == result.checkpoint

    # The temperature of the scores on data.val is in the checkpoint and in its version.
    meta = load_meta(result.checkpoint)
    table = evaluate_model(load_detector(result.checkpoint), str(config.data.val)).evaluation.table
    assert meta.temperature == pytest.approx(fit_temperature(table))
    for uri in ("models:/shapes/1", result.checkpoint, str(run)):
        assert load_detector(uri, result.tracking_uri).temperature == meta.temperature

    detect = load("models:/shapes/1", result.tracking_uri)
    assert detect.classes == load_detector(str(run)).classes
    image = np.zeros((48, 64, 3), np.uint8)
    for found_boxes in (detect(image, score_threshold=0.0), load(str(run))(image)):
        assert all(0 <= item.box[0] <= item.box[2] <= 64 for item in found_boxes)
    with pytest.raises(UserError, match="unknown setting 'threshold'"):
        detect(image, threshold=0.5)
    with pytest.raises(UserError, match=r"shape \(48, 64\)"):
        detect(image[:, :, 0])
    with pytest.raises(UserError, match="absent.jpg: No such file"):
        detect("absent.jpg")
    with pytest.raises(UserError, match="image 0: not an image"):
        detect(b"no image")

    # A store that does not have the run gets a new one.
    copy = new_store(tmp_path / "other")
    elsewhere = register.main([f"--run={run}", "--name=shapes", f"--tracking.uri={copy}"])
    again = register.main([f"--run={run}", "--name=shapes", f"--tracking.uri={copy}"])
    assert again == elsewhere
    version = connect(copy).get_model_version("shapes", str(elsewhere["version"]))
    assert version.run_id != result.run_id
    assert connect(copy).get_run(version.run_id).info.status == "FINISHED"


def test_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no checkpoint; give"):
        register.main(
            [f"--run={tmp_path}", "--name=shapes", f"--tracking.uri={new_store(tmp_path)}"]
        )
