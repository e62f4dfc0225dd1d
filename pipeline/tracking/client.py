"""Where runs are kept and how to reach them: one rule for the URI, a safe first opening.

A fresh sqlite file opened by several processes at once ends in a half-made schema, so the first
opening happens under a file lock. A server that does not answer is an error within seconds.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.storage.redact import mask

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def resolve_uri(config: TrackingConfig | None = None) -> str:
    """The config's URI, else ``$MLFLOW_TRACKING_URI``, else sqlite in ``./mlflow``; ready to use.

    A sqlite URI comes back absolute, because workers run in other folders, and its schema exists.
    """
    uri = (config.uri if config else None) or os.environ.get("MLFLOW_TRACKING_URI")
    uri = uri or f"sqlite:///{Path.cwd() / 'mlflow' / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme == "sqlite":
        return _prepare_sqlite(uri)
    if scheme not in _PORTS and not uri.startswith("databricks"):
        raise UserError(
            f"tracking.uri {mask(uri)!r} is no run store; use http(s)://HOST:PORT of an MLflow "
            "server, sqlite:///FILE or a database URI"
        )
    return uri


def connect(uri: str) -> MlflowClient:
    """A client whose store has answered; raises UserError naming the URI within seconds."""
    _check_port(uri)
    try:
        client = _client(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # drivers and databases raise nearly anything
        raise UserError(f"tracking.uri {mask(uri)}: {_first_line(error)}") from None
    return client


def wait_for_store(uri: str, seconds: float) -> None:
    """Return when the store answers; raises UserError if it has not after that long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connect(uri)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)


def artifact_root(uri: str) -> str | None:
    """Where a sqlite store keeps artifacts: beside the file. None: the server decides."""
    path = _sqlite_path(uri)
    return (path.parent / "artifacts").as_uri() if path else None


def _prepare_sqlite(uri: str) -> str:
    path = _sqlite_path(uri)
    if path is None:
        raise UserError(f"tracking.uri {uri!r} names no file; write sqlite:///FILE")
    uri = f"sqlite:///{path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=300):
            connect(uri)
    except OSError as error:
        raise UserError(f"tracking.uri {uri}: {error.strerror or error}") from None
    return uri


def _sqlite_path(uri: str) -> Path | None:
    name = uri.removeprefix("sqlite:///").split("?")[0]
    if name == uri or name in ("", ":memory:"):
        return None
    return Path(name).expanduser().absolute()


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    # After the import, which sets the levels. A failed request is reported by its caller.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_port(uri: str) -> None:
    # MLflow's own retries take minutes to admit that nobody listens.
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    proxied = scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        parts.hostname or ""
    )
    if scheme not in _PORTS or not parts.hostname or proxied:
        return
    try:
        address = (parts.hostname, parts.port or _PORTS[scheme])
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"tracking.uri {mask(uri)} cannot be reached: {error}; start the server or unset "
            "tracking.uri and $MLFLOW_TRACKING_URI to use sqlite in ./mlflow"
        ) from None


def _first_line(error: Any) -> str:
    lines = mask(str(error)).splitlines() or [type(error).__name__]
    return lines[0][:300]
