"""Progress lines: rate, time left, what was done before, plain text."""

import time

import pytest

from pipeline import progress
from pipeline.progress import Progress, Throttle, counted


def test_throttle_is_due_once_per_period() -> None:
    throttle = Throttle(0.1)
    assert not throttle.due()
    time.sleep(0.11)
    assert throttle.due() and not throttle.due()
    time.sleep(0.11)
    throttle.restart()
    assert not throttle.due()


def test_progress_reports_counts_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    report = Progress("converting", 10)
    report.skip(4)
    time.sleep(0.1)
    report.advance(2)
    report.advance(4)
    report.finish()
    output = capsys.readouterr()
    assert output.out == "" and "\x1b" not in output.err and "\r" not in output.err
    lines = output.err.splitlines()
    assert lines[0].startswith("  converting: 6/10 images, ") and lines[0].endswith(" s left")
    assert 0 < int(lines[0].split(", ")[1].removesuffix("/s")) <= 20
    assert lines[1].startswith("  converting: 10/10 images, ")
    assert lines[1].endswith("/s, 0 s left")
    assert lines[2] == "  converting: 4 images were done before"
    assert lines[3].startswith("  converting: 6 images, ")


def test_an_unknown_total_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    Progress("reading", unit="files").advance()
    assert capsys.readouterr().err.startswith("  reading: 1/? files, ")


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress("converting", 3)
    report.advance(3)
    report.finish()
    assert capsys.readouterr().err == ""


def test_counts_of_one_are_singular():
    assert [counted(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
