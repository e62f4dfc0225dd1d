"""Retries: which failures are transient, how often they are retried, and what is reported."""

import errno
import logging
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import OutageError, UserError
from pipeline.storage import remote
from pipeline.storage.http_client import HttpStatusError
from pipeline.storage.remote import Remote, with_retries


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.001)


def failing(errors: list[Exception]) -> Callable[[], str]:
    """Return a function that raises the errors in turn, and then returns "done"."""

    def attempt() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return attempt


def test_transient_failures_are_retried_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    errors = [OSError("cut"), HttpStatusError(503, "Busy"), HttpStatusError(429, "Slow down")]
    assert with_retries(failing([*errors]), "http://host/file", 3) == "done"
    lines = [record.getMessage() for record in caplog.records]
    for line, reason in zip(lines, ("cut", "status 503 Busy", "status 429 Slow down"), strict=True):
        assert line.startswith(f"http://host/file: {reason}; retrying in ")


def test_retries_are_limited_and_counted() -> None:
    errors: list[Exception] = [OSError("cut")] * 5
    with pytest.raises(OutageError, match=r"^http://host/file: cut \(3 attempts\)$"):
        with_retries(failing(errors), "http://host/file", 2)
    assert len(errors) == 2


class NoCredentialsError(Exception):
    """Has the name of botocore's error."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HttpStatusError(403, "Forbidden"), "^file: status 403 Forbidden$"),
        (PermissionError("not yours"), "^file: not yours$"),
        (ValueError("no such encoding"), "^file: no such encoding$"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "^file: .*No space left on device$"),
        (NoCredentialsError("Unable to locate credentials"), "set .AWS_ACCESS_KEY_ID and similar$"),
        (HttpStatusError(400, "http://h/f?code=secret"), r"^file: status 400 http://h/f\?\.\.\.$"),
    ],
)
def test_final_failure_is_reported_at_once(error: Exception, message: str) -> None:
    errors = [error, OSError("not reached")]
    with pytest.raises(UserError, match=message):
        with_retries(failing(errors), "file", 5)
    assert len(errors) == 1


@pytest.mark.parametrize(
    "error", [OSError("cut"), TimeoutError("slow"), HttpStatusError(500, "Broken")]
)
def test_failure_that_remains_is_an_outage(error: Exception) -> None:
    with pytest.raises(OutageError, match=r"^file: .* \(2 attempts\)$"):
        with_retries(failing([error, error]), "file", 1)


@pytest.mark.parametrize(
    "service", ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", ""]
)
def test_missing_credentials_are_retried_where_a_service_gives_them_out(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    if service:
        monkeypatch.setenv(service, "x")
    else:
        monkeypatch.setattr(remote, "_VENDOR_FILE", tmp_path / "sys_vendor")
        (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    missing = NoCredentialsError("Unable to locate credentials")
    assert with_retries(failing([missing] * 3), "file", 3) == "done"
    with pytest.raises(OutageError, match="Unable to locate credentials"):
        with_retries(failing([missing] * 4), "file", 3)


def test_delays_differ_between_processes_and_leave_the_seeded_generator_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = []
    for _ in range(2):  # as two ranks, which are seeded identically
        random.seed(0)
        state = random.getstate()
        with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote.time, "sleep", lambda seconds: lines.append(seconds))
            with_retries(failing([OSError("cut")] * 5), "file", 5)
        assert random.getstate() == state
    assert lines[:5] != lines[5:]


@pytest.mark.parametrize("error", [UserError("wrong option"), FileNotFoundError("absent")])
def test_errors_of_the_caller_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        with_retries(failing([error]), "file", 5)
    assert caught.value is error


def test_full_disk_names_the_folder_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2000))
    with pytest.raises(UserError, match="^/dev: No space left on device; cannot write file$"):
        Remote(f"local://{tmp_path}").fetch("file", Path("/dev/full"))


def test_fetch_checks_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    found = Remote(f"local://{tmp_path}/", retries=1)
    found.fetch("file", tmp_path / "copy", 7)
    with pytest.raises(UserError, match=r"received 7 bytes, the manifest says 8 \(2 attempts\)$"):
        found.fetch("file", tmp_path / "copy", 8)
    with pytest.raises(UserError, match=r"its sha256 is [0-9a-f]{12}\.\.\., the manifest says 000"):
        found.fetch("file", tmp_path / "copy", 7, "0" * 64)
    assert pickle.loads(pickle.dumps(found)).read("file") == b"content"  # noqa: S301
