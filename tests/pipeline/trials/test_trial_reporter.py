"""Events of trials are recorded, and printed on one line each."""

from pathlib import Path

import pytest

from pipeline.training.error_hints import LOST_PROCESS
from pipeline.trials.trial import MISTAKE
from pipeline.trials.trial_records import TrialRecord, TrialRecords
from pipeline.trials.trial_reporter import TrialReporter


class Trial:
    """What the reporter reads of a trial of Ray Tune."""

    def __init__(self, name: str, error_file: Path | None = None, mistake: str = "") -> None:
        self.config, self.error_file = {"name": name}, error_file
        self.last_result = {MISTAKE: mistake} if mistake else {}


def test_each_event_is_recorded_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = TrialRecords(str(tmp_path))
    for name in ("t0001", "t0002", "t0003", "t0004"):
        records.save(TrialRecord(name=name, params={"assign.sigma": 2.123456}))
    records.save(records.all["t0002"].with_score(1.0, 0.25))
    ending: list[bool] = []
    reporter = TrialReporter("val/ap", records, "t0001".__eq__, lambda: bool(ending))
    one, two = Trial("t0001"), Trial("t0002")
    failures = tmp_path / "error.txt"
    failures.write_text(
        "Failure # 1 (occurred at 9:00)\nTraceback:\n  x\n\nray.Error: disk full\n\n"
    )
    three, four = Trial("t0003"), Trial("t0004", failures)
    reporter.on_trial_start(0, [], one)
    reporter.on_trial_start(0, [], two)
    reporter.on_trial_result(0, [], one, {"epoch": 1.0, "val/ap": 0.5})
    reporter.on_trial_result(0, [], one, {"epoch": 2.0})  # between two evaluations
    reporter.on_trial_complete(0, [], one)
    reporter.on_trial_recover(0, [], four)
    reporter.on_trial_complete(0, [], two)
    with failures.open("a") as file:
        file.write("Failure # 2 (occurred at 9:01)\nThe actor died unexpectedly.\n\tpid: 7\n")
    reporter.on_trial_error(0, [], four)
    ending.append(True)
    reporter.on_trial_complete(0, [], three)
    assert capsys.readouterr().err.splitlines() == [
        "trial t0001 starts: assign.sigma 2.123",
        "trial t0002 resumes after epoch 1: assign.sigma 2.123",
        "trial t0001 epoch 1.0: val/ap 0.5000",
        "trial t0001 finished (1 ended)",
        "trial t0004 is retried after: disk full",
        "trial t0002 stopped early (2 ended)",
        f"trial t0004 failed: its process {LOST_PROCESS} (3 ended)",
    ]
    again = TrialRecords(str(tmp_path))
    again.load()
    assert again.all == records.all
    states = [record.state for record in again.all.values()]
    assert states == ["finished", "stopped early", "unfinished", "failed"]
    assert again.all["t0001"].scores == [(1.0, 0.5)]
    assert again.all["t0004"].error == f"its process {LOST_PROCESS}"


def test_trial_that_cannot_be_trained_has_failed_with_its_reason(tmp_path: Path) -> None:
    records = TrialRecords(str(tmp_path))
    records.save(TrialRecord(name="t0001", params={}).with_score(1.0, 0.5))
    reporter = TrialReporter("val/ap", records, lambda name: False, lambda: False)
    reporter.on_trial_complete(
        0, [], Trial("t0001", mistake="the gradient is not finite at step 9")
    )
    record = records.all["t0001"]
    assert (record.state, record.error) == ("failed", "the gradient is not finite at step 9")
