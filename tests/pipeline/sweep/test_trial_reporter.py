"""Progress lines of a sweep: each carries the name of its trial."""

from types import SimpleNamespace

import pytest

from pipeline.sweep.trial_reporter import TrialReporter


def test_each_line_names_its_trial_and_ends_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = TrialReporter("val/ap", 2)
    config = {"assign.sigma": 2.123456, "assign.name": "atss"}
    one, two = (
        SimpleNamespace(trial_id=name, config=config, path=f"/runs/{name}") for name in ("a1", "b2")
    )
    reporter.on_trial_start(0, [], one)
    reporter.on_trial_result(1, [], one, {"val/ap": 0.25, "epoch": 1.5})
    reporter.on_trial_result(1, [], one, {"epoch": 2.0})  # without an evaluation
    reporter.on_trial_complete(2, [], one)
    reporter.on_trial_error(3, [], two)
    assert capsys.readouterr().err.splitlines() == [
        "trial a1 starts: assign.sigma 2.123, assign.name atss",
        "trial a1 epoch 1.5: val/ap 0.2500",
        "trial a1 ended (1 of 2 done)",
        "trial b2 failed, see /runs/b2 (2 of 2 done)",
    ]
