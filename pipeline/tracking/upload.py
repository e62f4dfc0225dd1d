"""Uploads of artifacts: how long they may take, and which responses are final.

MLflow's HTTP artifact repository has one timeout for all requests. 10 s suit a request with a few
points, but not a server that stores hundreds of megabytes before it responds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pipeline.storage.redact import first_line

REJECTED_FOLDER = "rejected"  # of a spool, with the files by artifact path
BYTES_PER_SECOND = 1e6  # that an upload needs at least
_MIN_SECONDS = 60.0
_MAX_ATTEMPTS = 5
# Timeouts, conflicts and limits on the rate of requests, which a retry may pass.
_TEMPORARY = frozenset({408, 409, 423, 425, 429})
# Permissions that are renewed, and services that are replaced, also cause these for some seconds.
_FINAL_IF_REPEATED = frozenset({401, 403, 404, 407})
_read_timeout: ContextVar[float | None] = ContextVar("read_timeout", default=None)


@contextlib.contextmanager
def upload_timeout(size: int) -> Iterator[None]:
    """Let the server take the time to store ``size`` bytes, in requests of this thread.

    Connections keep the timeout of all other requests.
    """
    _apply_read_timeout()
    token = _read_timeout.set(_MIN_SECONDS + size / BYTES_PER_SECOND)
    try:
        yield
    finally:
        _read_timeout.reset(token)


def is_rejected(error: BaseException, attempts: int = _MAX_ATTEMPTS) -> bool:
    """Return whether the server rejects an upload for good, after so many failed attempts.

    That is a client error (HTTP 4xx), such as a file that is too large for a proxy. No response,
    a timeout and a server error are outages.
    """
    status = http_status(error)
    if status is None or not 400 <= status < 500 or status in _TEMPORARY:
        return False
    return status not in _FINAL_IF_REPEATED or attempts >= _MAX_ATTEMPTS


def keep_rejected(spool: Path, artifact: str, text: str) -> Path:
    """Write a text artifact into the spool as a rejected file. Return its path."""
    path = spool / REJECTED_FOLDER / artifact
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rejection(run_id: str, artifact: str, error: BaseException, kept: Path | None) -> str:
    """Return the message about a rejected artifact, with the path at which it is kept."""
    text = f"run {run_id}: artifact {artifact} was rejected: {first_line(error)}"
    if kept is None:
        return text
    return (
        f"{text}; it is kept as {kept} and is sent by `python -m jobs.tracking sync` once the "
        "server accepts it"
    )


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the response behind an error, or None if there was none."""
    from mlflow.exceptions import MlflowException

    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(response, dict):  # of botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status is None and isinstance(error, MlflowException):
            status = error.get_http_status_code()
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


@functools.cache
def _apply_read_timeout() -> None:
    """Replace the function that MLflow's artifact repository sends requests with.

    Checked with MLflow 3.17, which has no setting for it. The environment variable of the timeout
    applies to all threads, and points must not wait for a server as long as files do.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
    from mlflow.store.artifact import http_artifact_repo

    send = http_artifact_repo.http_request

    def send_with_timeout(*arguments: Any, **options: Any) -> Any:
        seconds = _read_timeout.get()
        if seconds is not None:
            options.setdefault("timeout", (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), seconds))
        return send(*arguments, **options)

    http_artifact_repo.http_request = send_with_timeout
