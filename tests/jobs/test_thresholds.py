"""`jobs.thresholds` on a run: what it prints, and what it advises."""

from pathlib import Path

import pytest

from jobs import thresholds
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.postprocessing.settings import BestSettings, Settings, Tried
from pipeline.metrics.bootstrap import Interval
from pipeline.training.fit import fit
from tests.pipeline.conftest import scenes, small  # noqa: F401


def test_settings_of_a_run_are_searched(
    small: Config,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = fit(small, run="one")
    run = Path(result.checkpoint).parent
    capsys.readouterr()
    options = [
        f"--data={small.data.val}",
        "--register=tuned",
        f"--tracking.uri={small.tracking.uri}",
    ]
    figures = thresholds.main([f"--model={run}", *options])
    # The first settings are those of the training, and give its score.
    assert figures["before"]["metrics"]["ap"] == pytest.approx(result.metrics["val/ap"], abs=1e-12)
    assert figures["before"] == figures["tried"][0]
    best = max(figures["tried"], key=lambda tried: tried["metrics"]["ap"])
    assert figures["best"]["metrics"]["ap"] == best["metrics"]["ap"]
    out = capsys.readouterr().out
    assert f"ap {result.metrics['val/ap']:.4f} with the settings of the training" in out
    # They are those of the version; searched and registered again, they make no other one.
    assert figures["registered"] == "models:/tuned/1"
    again = thresholds.main(["--model=models:/tuned/1", *options])
    assert again["before"] == figures["advised"]
    assert again["score_thresholds"] == figures["score_thresholds"]
    assert again["registered"] == "models:/tuned/1"
    with pytest.raises(UserError, match=r"--register 'a/b': use letters, digits"):
        thresholds.main([f"--model={run}", f"--data={small.data.val}", "--register=a/b"])
    with pytest.raises(UserError, match=r"no/such does not exist; give models:"):
        thresholds.main(["--model=no/such", f"--data={small.data.val}"])


@pytest.mark.parametrize(("low", "advised"), [(0.01, "0.7"), (-0.01, "0.5")])
def test_settings_that_may_be_noise_are_not_advised(low: float, advised: str) -> None:
    before = Tried(Settings(0.5, False, 100), {"ap": 0.4})
    best = Tried(Settings(0.7, False, 100), {"ap": 0.45})
    gain = Interval(0.05, low, 0.09)
    lines = thresholds.lines(BestSettings("ap", before, best, gain, 0.3, {"cat": 0.25}))
    assert f"  nms_iou: {advised}" in lines and "  cat: 0.250" in lines
    (verdict,) = (line for line in lines if line.startswith("best: "))
    assert verdict.startswith("best: NMS at 0.7 within classes, 100 detections, +0.0500")
    assert verdict.endswith("; this may be noise") == (low < 0)
