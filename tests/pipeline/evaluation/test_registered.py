"""Test `jobs.evaluate`: registered weights score as in training, on their own classes only."""

from pathlib import Path

import pytest

from jobs import evaluate, prepare
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.training.fit import fit


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

    other = tmp_path / "other"
    prepare.main(
        [
            *("--source", "shapes", "--count", "2", "--size", "64", "--out", str(other)),
            *("--classes", "square,circle"),
        ]
    )
    with pytest.raises(UserError, match=r"square, circle.*models:/shapes/1 has circle, cross"):
        evaluate.main([*model, "--data", str(other)])
