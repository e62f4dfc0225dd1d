"""The tracking store: its URI, and clients that fail within seconds when it does not respond.

Several processes that open a new sqlite file at the same time leave an incomplete schema, so the
file is first opened under a lock.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.config import TrackingConfig
from pipeline.errors import OutageError, UserError
from pipeline.storage.lock import lock_file, try_lock_file
from pipeline.storage.redact import first_line, mask
from pipeline.tracking.upload import is_rejected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONNECT_TIMEOUT_SECONDS = 5.0
_SCHEMA_LOCK_SECONDS = 300
_WRITE_LOCK_SECONDS = 10.0  # then it is tried without
_POLL_SECONDS = 2.0
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class StoreError(OutageError):
    """A request to the tracking store failed. It may succeed later."""


class StoreRejection(UserError):
    """The tracking store rejects a request, such as one without permission."""


class RunDeletedError(UserError):
    """A run was deleted in the store, where it can be restored."""

    def __init__(self, run_id: str, uri: str) -> None:
        self.remedy = f"restore it (`mlflow runs restore --run-id {run_id}`)"
        super().__init__(f"run {run_id} was deleted in {mask(uri)}; {self.remedy}")


def check_active(uri: str, run: Run) -> None:
    """Raise RunDeletedError if a run was deleted."""
    if run.info.lifecycle_stage == "deleted":
        raise RunDeletedError(run.info.run_id, uri)


def resolve_uri(config: TrackingConfig | None = None) -> str:
    """Return the URI of the tracking store: configured, ``$MLFLOW_TRACKING_URI``, or ``./mlflow``.

    A sqlite URI is returned absolute, because workers run in other directories, and its schema is
    created. Raises UserError if the URI is not a tracking store.
    """
    uri = (config or TrackingConfig()).store_uri()
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme == "sqlite":
        return _prepare_sqlite(uri)
    if scheme not in _DEFAULT_PORTS and not uri.startswith("databricks"):
        raise UserError(
            f"tracking.uri {mask(uri)!r} is not a tracking store; use http(s)://HOST:PORT of an "
            "MLflow server or sqlite:///FILE"
        )
    return uri


def resolve_run_store(config: TrackingConfig) -> str:
    """Return the URI of a store in which runs are created and resumed.

    Raises UserError as `resolve_uri` and if artifacts would be stored in the working directory.
    """
    uri = resolve_uri(config)
    artifact_root(uri, config.artifacts)
    return uri


def connect(uri: str) -> MlflowClient:
    """Return a client of a store that responds.

    Raises within seconds: StoreError if it does not respond, StoreRejection if it rejects requests.
    """
    _check_port(uri)
    try:
        client = _client(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # database drivers raise exceptions of many types
        raise _failed_request(uri, error) from None
    return client


def experiment_of(uri: str, run_id: str) -> str | None:
    """Return the id of the experiment of a run, or None if the store does not respond."""
    try:
        return str(connect(uri).get_run(run_id).info.experiment_id)
    except Exception:  # of a client or database driver; a page's address is not worth an error
        return None


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Raise failed requests of the block as StoreError or StoreRejection, in one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # requests' exceptions are OSErrors
        raise _failed_request(uri, error) from None


def _failed_request(uri: str, error: Exception) -> StoreError | StoreRejection:
    kind = StoreRejection if is_rejected(error) else StoreError
    return kind(f"tracking.uri {mask(uri)}: {first_line(error)}")


def wait_for_store(uri: str, seconds: float) -> None:
    """Wait until the store responds. Raises as `connect` if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connect(uri)
            return
        except (StoreError, StoreRejection):
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def artifact_root(uri: str, stated: str | None) -> str | None:
    """Return where a new experiment stores its artifacts; None lets the server decide.

    That is the ``stated`` folder or URI (``tracking.artifacts``), or a folder next to a sqlite
    file. For other databases MLflow would use a folder in the working directory of this process,
    which may be that of a job that is deleted. Raises UserError instead.
    """
    if stated is not None:
        return stated if "://" in stated else Path(stated).as_uri()
    path = _sqlite_path(uri)
    if path is not None:
        return (path.parent / "artifacts").as_uri()
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in _DEFAULT_PORTS and scheme not in ("http", "https"):
        raise UserError(
            f"tracking.uri {mask(uri)} is a database, which does not store artifacts; set "
            "tracking.artifacts to a folder or URI that all nodes can access, or use an MLflow "
            "server"
        )
    return None


def _prepare_sqlite(uri: str) -> str:
    path = _sqlite_path(uri)
    if path is None:
        raise UserError(f"tracking.uri {uri!r} does not name a file; use sqlite:///FILE")
    uri = f"sqlite:///{path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path.with_name(f"{path.name}.lock"), _SCHEMA_LOCK_SECONDS):
            connect(uri)
    except StoreError as error:  # of a file: not a service that may respond later
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"tracking.uri {uri}: {error.strerror or error}") from None
    return uri


@contextlib.contextmanager
def exclusive_writes(uri: str) -> Iterator[None]:
    """Write to a sqlite store, one process of this machine at a time; no effect on other stores.

    MLflow reads and writes in one transaction. Where two processes do so, sqlite rejects one of
    them at once as "database is locked", without waiting.
    """
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    lock = path.with_name(f"{path.name}.lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of another user, who may still write to the store
            stack.enter_context(try_lock_file(lock, _WRITE_LOCK_SECONDS, required=False))
        yield


def visible_here(uri: str) -> bool:
    """Return whether this machine sees the file of a sqlite store; True for other stores."""
    path = _sqlite_path(uri)
    return path is None or path.exists()


def _sqlite_path(uri: str) -> Path | None:
    name = uri.removeprefix("sqlite:///").split("?")[0]
    if name == uri or name in ("", ":memory:"):
        return None
    return Path(name).expanduser().absolute()


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    # MLflow sets these levels when it is imported. Callers report failed requests themselves.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_port(uri: str) -> None:
    # MLflow's own retries take minutes to report that nothing listens on a port.
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    proxied = scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        parts.hostname or ""
    )
    if scheme not in _DEFAULT_PORTS or not parts.hostname or proxied:
        return
    try:
        address = (parts.hostname, parts.port or _DEFAULT_PORTS[scheme])
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StoreError(
            f"tracking.uri {mask(uri)} cannot be reached: {error}; start the server or unset "
            "tracking.uri and $MLFLOW_TRACKING_URI to use sqlite in ./mlflow"
        ) from None
