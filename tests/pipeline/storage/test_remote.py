"""Retries: which failures are transient, how often they are retried, and what is reported."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
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
    with pytest.raises(UserError, match=r"^http://host/file: cut \(3 attempts\)$"):
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
