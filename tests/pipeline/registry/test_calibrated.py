"""Test scores that are calibrated by the temperature of a version."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import pyfunc
from mlflow.exceptions import MlflowException

from jobs import predict
from pipeline.errors import UserError
from pipeline.metrics.calibration import apply_temperature
from pipeline.predict import Predictor
from pipeline.registry import fetch_model, load_detector
from tests.pipeline.registry.conftest import TEMPERATURE, Registered
from tests.pipeline.registry.test_bundle import picture

IMAGES = pd.DataFrame({"image": [picture(60, 40), picture(33, 50, seed=1)]})


@pytest.fixture(scope="module")
def models(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [
        fetch_model(f"models:/shapes/{version}", tmp_path_factory.mktemp("model"), registered.uri)
        for version in (1, 2)
    ]


def test_temperature_is_stored_in_the_bundle(registered: Registered, models: list[Path]) -> None:
    stored = [json.loads((one / "artifacts" / "detector.json").read_text()) for one in models]
    assert [one["temperature"] for one in stored] == [TEMPERATURE, None]
    found = [load_detector(f"models:/shapes/{v}", registered.uri).temperature for v in (1, 2)]
    assert found == [TEMPERATURE, None]


def test_calibrated_scores_are_those_of_the_temperature(models: list[Path]) -> None:
    model = pyfunc.load_model(str(models[0]))
    plain = model.predict(IMAGES)
    calibrated = model.predict(IMAGES, {"calibrated": True})
    pd.testing.assert_frame_equal(plain, model.predict(IMAGES, {"calibrated": False}))
    scores = apply_temperature(plain["score"].to_numpy(), TEMPERATURE)
    np.testing.assert_allclose(calibrated["score"], scores, rtol=1e-12)
    assert (calibrated["score"] != plain["score"]).all()
    pd.testing.assert_frame_equal(*(t.drop(columns="score") for t in (plain, calibrated)))


@pytest.mark.parametrize("rank", [3, 10, 17])
def test_threshold_applies_to_calibrated_scores(models: list[Path], rank: int) -> None:
    model = pyfunc.load_model(str(models[0]))
    everything = model.predict(IMAGES[:1], {"calibrated": True})
    above, below = everything["score"][rank - 1 : rank + 1]
    threshold = (above + below) / 2
    found = model.predict(IMAGES[:1], {"calibrated": True, "score_threshold": threshold})
    pd.testing.assert_frame_equal(found, everything.head(rank))
    for extreme, count in ((0.0, 20), (1.0, 0)):
        params = {"calibrated": True, "score_threshold": extreme}
        assert len(model.predict(IMAGES[:1], params)) == count


def test_version_without_a_temperature_has_no_calibrated_scores(models: list[Path]) -> None:
    with pytest.raises(MlflowException, match="calibrated: this model has no temp") as error:
        pyfunc.load_model(str(models[1])).predict(IMAGES, {"calibrated": True})
    assert error.value.get_http_status_code() == 400


def test_predictor_calibrates(registered: Registered) -> None:
    image = IMAGES["image"][0]
    detect = Predictor("models:/shapes/1", registered.uri)
    plain, calibrated = detect(image), detect(image, calibrated=True)
    scores = apply_temperature(np.array([one.score for one in plain]), TEMPERATURE)
    assert [one.score for one in calibrated] == pytest.approx(scores)
    with pytest.raises(UserError, match="has no temperature"):
        Predictor("models:/shapes/2", registered.uri)(image, calibrated=True)


@pytest.mark.parametrize("code", [[], ["--bundle-code"]])
def test_predict_job_calibrates(registered: Registered, tmp_path: Path, code: list[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(IMAGES["image"][0])

    def scores(version: int, *options: str) -> list[float]:
        predict.main(
            [
                *("--model", f"models:/shapes/{version}", "--images", str(tmp_path / "images")),
                *("--out", str(tmp_path / "out"), "--tracking.uri", registered.uri),
                *("--no-pictures", *code, *options),
            ]
        )
        (line,) = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
        return [one["score"] for one in json.loads(line)["detections"]]

    expected = apply_temperature(np.array(scores(1)), TEMPERATURE)
    assert scores(1, "--calibrated") == pytest.approx(expected, abs=1e-5)
    assert all(score >= 0.5 for score in scores(1, "--calibrated", "--score-threshold", "0.5"))
    with pytest.raises(UserError, match=r"--calibrated: models:/shapes/2 has no temperature"):
        scores(2, "--calibrated")
