"""The documents of a spool folder: which run its records belong to, and the spec of a new run.

Until a store has responded, a run has a placeholder id, ``offline-KEY``. The first process that
reaches the store (the driver, rank 0 or ``jobs.tracking sync``) creates the run from its spec;
the others find it by the key.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.durable import write_durably
from pipeline.storage.lock import lock_file
from pipeline.storage.redact import mask
from pipeline.tracking.run_spec import RunSpec, ensure_run, find_run
from pipeline.tracking.spool.record_queue import SPOOL_INFO_FILE, cached_spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_SPEC_FILE, RUN_SPEC_LOCK_FILE = "begin.json", "begin.lock"
SPOOL_FOLDER = "tracking"
_LOCK_TIMEOUT_SECONDS = 300
_PLACEHOLDER_PREFIX = "offline-"
Content = TypeVar("Content", bound=Document)


class SpoolInfo(Document):
    """The run that the records of a spool belong to, and its store."""

    run_id: str
    uri: str | None = Field(description="tracking store; None if its URI contains a secret")


def spool_folder(run_uri: str) -> Path:
    """Return the spool folder of a run, next to its checkpoints, where every node sees it.

    A run in an object store has its spool in the cache of each machine.
    """
    path = run_uri.removeprefix("file://")
    if "://" in path:
        return cached_spool(run_uri)
    return Path(path) / SPOOL_FOLDER


def is_placeholder(run_id: str) -> bool:
    """Return whether this is the placeholder id of a run that was created without a store."""
    return run_id.startswith(_PLACEHOLDER_PREFIX)


def placeholder_id(spec: RunSpec) -> str:
    """Return the id of a run until a store has assigned one."""
    return f"{_PLACEHOLDER_PREFIX}{spec.key}"


def save_spool_info(folder: Path, uri: str, run_id: str) -> None:
    """Write which run and store the records of a spool folder belong to."""
    info = SpoolInfo(run_id=run_id, uri=uri if mask(uri) == uri else None)
    if load_spool_info(folder) != info:
        write_durably(folder / SPOOL_INFO_FILE, info.encode(indent=None))


def load_spool_info(folder: Path) -> SpoolInfo | None:
    """Read which run and store a spool belongs to; None if `save_spool_info` never wrote it."""
    return _read(folder / SPOOL_INFO_FILE, SpoolInfo)


def save_run_spec(folder: Path, spec: RunSpec) -> None:
    """Keep a run's spec until the run exists."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(folder / RUN_SPEC_FILE, spec.encode(indent=None))


def load_run_spec(folder: Path) -> RunSpec | None:
    """Read the spec of a run that may not exist yet; None if there is none."""
    return _read(folder / RUN_SPEC_FILE, RunSpec)


def resolve_run(folder: Path, client: MlflowClient, uri: str, run_id: str) -> str:
    """Return the run's id in the store. Create the run if only its spec exists.

    Raises UserError if the store does not have the run.
    """
    from mlflow.exceptions import MlflowException

    found: str | None = run_id
    if is_placeholder(run_id):
        key = run_id.removeprefix(_PLACEHOLDER_PREFIX)
        found = create_spooled_run(folder, uri) or find_run(client, key)
    try:
        if found is not None:
            return str(client.get_run(found).info.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise UserError(f"run {run_id} does not exist in {mask(uri)}")


def create_spooled_run(folder: Path, uri: str, keep_spec: bool = False) -> str | None:
    """Create the run whose spec is in a spool folder. Return its id, or None without a spec.

    A driver that keeps the spec finds the run again until it calls `discard_run_spec`.
    """
    if not (folder / RUN_SPEC_FILE).exists():
        return None
    with lock_file(folder / RUN_SPEC_LOCK_FILE, _LOCK_TIMEOUT_SECONDS):
        spec = load_run_spec(folder)
        run_id = ensure_run(uri, spec, folder) if spec else None
        if not keep_spec:
            (folder / RUN_SPEC_FILE).unlink(missing_ok=True)
    return run_id


def discard_run_spec(folder: Path, run_id: str) -> None:
    """Remove the spec of a run whose id the driver has recorded. Keep it for a placeholder."""
    if not is_placeholder(run_id):
        with contextlib.suppress(OSError):
            (folder / RUN_SPEC_FILE).unlink(missing_ok=True)


def _read(path: Path, kind: type[Content]) -> Content | None:
    try:
        return kind.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise UserError(
            f"{error}; restore the file, or delete {path.parent} with the records in it"
        ) from None
