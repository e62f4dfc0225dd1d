"""Test `jobs.evaluate`: registered weights score as in training, on their own classes only."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from jobs import evaluate, prepare
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.registry import load_detector
from pipeline.tracking import connect
from pipeline.training.fit import FitResult, fit


def runs(client: MlflowClient) -> list[Run]:
    experiments = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(experiments))


def assert_recorded(scored: dict[str, Any], uri: str) -> None:
    """Check the run of an evaluation: metrics, files, and its links to version and data set."""
    client = connect(uri)
    version = client.get_model_version("shapes", "1")
    run = client.get_run(scored["run_id"])
    training = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == training.info.experiment_id
    assert run.data.metrics["ap"] == scored["metrics"]["ap"]
    assert run.data.metrics["interval/ap_low"] == scored["intervals"]["ap"]["low"]
    assert run.data.tags["evaluation.model"] == "models:/shapes/1"
    (dataset,) = run.inputs.dataset_inputs
    assert scored["fingerprint"].startswith(dataset.dataset.digest)
    files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert files == {f"evaluation/{name}" for name in ("evaluation.html", "evaluation.json")} | {
        "evaluation/suspects.json"
    }
    (linked,) = run.inputs.model_inputs
    model = client.get_logged_model(linked.model_id)
    assert model.source_run_id == version.run_id
    assert {metric.key for metric in model.metrics} >= {"ap", "ap50"}


def assert_card(result: FitResult) -> None:
    """Check that the description has figures with intervals, and the classes that are not scored.

    The held-out scenes are few, so that one class has no object in them.
    """
    card = connect(result.tracking_uri).get_model_version("shapes", "1").description
    assert f"| test/ap50 | {result.metrics['test/ap50']:.4f} | 0." in card
    for use, names in result.unscored.items():
        assert f"`{use}` has no objects of {', '.join(names)}" in card
    assert "test" in result.unscored
    assert "| train | shapes | 20 | " in card
    assert "| 0 | circle | " in card


def test_registered_version_scores_as_in_training(small: Config, tmp_path: Path) -> None:
    result = fit(small.replace({"registry.name": "shapes"}), run="one")
    model = ["--model", "models:/shapes/1", "--tracking.uri", result.tracking_uri]
    scored = evaluate.main([*model, "--data", str(small.data.test)])
    expected = {
        name.removeprefix("test/"): value
        for name, value in result.metrics.items()
        if name.startswith("test/")
    }
    # Other batch sizes than in training: equal except for the last bits.
    assert scored["metrics"] == pytest.approx(expected, abs=1e-3)
    assert scored["images"] == 6
    assert scored["per_class"]["circle"]["objects"] > 0
    assert_recorded(scored, result.tracking_uri)
    assert_card(result)

    client = connect(result.tracking_uri)
    client.set_registered_model_alias("shapes", "good", "1")
    loaded = load_detector("models:/shapes@good", result.tracking_uri)
    assert loaded.uri == "models:/shapes/1"  # the alias may move

    before = len(runs(client))
    quiet = evaluate.main(
        [*model, "--data", str(small.data.test), "--no-track", "--out", str(tmp_path / "out")]
    )
    assert len(runs(client)) == before
    assert quiet["run_id"] is None
    assert quiet["metrics"] == scored["metrics"]
    assert quiet["intervals"] == scored["intervals"]
    names = ["evaluation.html", "evaluation.json", "suspects.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored["metrics"] == scored["metrics"]

    # A checkpoint has no training run in the store: its files are still beside the store.
    folder = ["--model", str(result.checkpoint), "--tracking.uri", result.tracking_uri]
    alone = evaluate.main([*folder, "--data", str(small.data.test), "--resamples", "5"])
    artifacts = client.get_run(alone["run_id"]).info.artifact_uri
    assert artifacts.removeprefix("file://").startswith(str(tmp_path))

    other = tmp_path / "other"
    prepare.main(
        [
            *("--source", "shapes", "--count", "2", "--size", "64", "--out", str(other)),
            *("--classes", "square,circle"),
        ]
    )
    with pytest.raises(UserError, match=r"square, circle.*models:/shapes/1 has circle, cross"):
        evaluate.main([*model, "--data", str(other)])
