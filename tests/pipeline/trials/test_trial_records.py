"""The records of trials survive a process, and repeat no score."""

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipeline.errors import UserError
from pipeline.storage.folder import Storage
from pipeline.trials.trial_records import TrialRecord, TrialRecords


@pytest.mark.parametrize("uri", ["{folder}", "file://{folder}"])
def test_records_are_read_again_by_name(tmp_path: Path, uri: str) -> None:
    records = TrialRecords(uri.format(folder=tmp_path))
    records.load()
    assert not records.all
    for score in (0.25, 0.5):
        record = TrialRecord(name=records.new_name(), params={"data.sizes": [64, 128]})
        records.save(record.with_score(1.5, score))
    again = TrialRecords(uri.format(folder=tmp_path))
    again.load()
    assert again.all == records.all and list(again.all) == ["t0001", "t0002"]
    assert again.all["t0002"].scores == [(1.5, 0.5)] and again.total_epochs() == 3.0


def test_repeated_evaluation_replaces_the_scores_from_there_on() -> None:
    record = TrialRecord(name="t0001", params={})
    assert record.best("max") is None and record.epochs == 0.0
    for epoch, score in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (2.0, 0.4)):
        record = record.with_score(epoch, score)
    assert record.scores == [(1.0, 0.5), (2.0, 0.4)]
    assert record.best("max") == 0.5 and record.best("min") == 0.4


def test_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "t0001.json").write_text("{")
    with pytest.raises(UserError, match=r"t0001\.json"):
        TrialRecords(str(tmp_path)).load()


def test_full_disk_damages_no_record_and_loses_none_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records, stored = TrialRecords(str(tmp_path)), TrialRecords(str(tmp_path))
    records.save(TrialRecord(name=records.new_name(), params={}).with_score(1.0, 0.25))
    with monkeypatch.context() as patch:
        error = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(Storage, "write", Mock(side_effect=error))
        records.save(records.all["t0001"].with_score(2.0, 0.5))
    assert "trial t0001 could not be recorded: " in caplog.text
    stored.load()
    assert stored.all["t0001"].scores == [(1.0, 0.25)]
    records.save(records.all["t0001"])
    stored.load()
    assert stored.all == records.all
