"""What lies in a run's spool folder besides records: whose they are, and a run not yet begun.

While no store has answered, a run goes by a placeholder, ``offline-KEY``. Whoever reaches the store
first (the driver, rank 0, ``jobs.tracking sync``) makes the run from ``begin.json``; afterwards the
key finds it.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.storage.durable import write_durably
from pipeline.storage.redact import mask
from pipeline.tracking.run_spec import Beginning, begin_run, find_run
from pipeline.tracking.spool.record_queue import ABOUT, cached

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEGIN, LOCK = "begin.json", "begin.lock"
FOLDER = "tracking"
_OFFLINE = "offline-"


def spool_folder(run_uri: str) -> Path:
    """Where a run's unsent records wait: beside its checkpoints, which every node sees.

    In the cache of each machine where the storage is an object store.
    """
    path = run_uri.removeprefix("file://")
    if "://" in path:
        return cached(run_uri)
    return Path(path) / FOLDER


def is_offline(run_id: str) -> bool:
    """Whether this is the placeholder of a run that no store knew when it began."""
    return run_id.startswith(_OFFLINE)


def offline_id(beginning: Beginning) -> str:
    """The placeholder of a run that is to be made later."""
    return f"{_OFFLINE}{beginning['key']}"


def save_about(folder: Path, uri: str, run_id: str) -> None:
    """Note whose records these are, and where they go unless the address holds a secret."""
    about = {"run_id": run_id, "uri": uri if mask(uri) == uri else None}
    if load_about(folder) != about:
        _write(folder / ABOUT, about)


def load_about(folder: Path) -> dict[str, Any] | None:
    """What `save_about` noted; None where it never did."""
    return _read(folder / ABOUT)


def save_beginning(folder: Path, beginning: Beginning) -> None:
    """Keep a beginning until its run exists."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(folder / BEGIN, beginning)


def load_beginning(folder: Path) -> Beginning | None:
    """The beginning of a run that may not exist yet."""
    return _read(folder / BEGIN)


def resolve_run(folder: Path, client: MlflowClient, uri: str, run_id: str) -> str:
    """The run's id in the store; makes the run where only its beginning is known.

    Raises UserError if the store does not know the run.
    """
    from mlflow.exceptions import MlflowException

    found: str | None = run_id
    if is_offline(run_id):
        found = make_run(folder, uri) or find_run(client, run_id.removeprefix(_OFFLINE))
    try:
        if found is not None:
            return str(client.get_run(found).info.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise UserError(f"run {run_id} does not exist in {mask(uri)}")


def make_run(folder: Path, uri: str, keep: bool = False) -> str | None:
    """Make the run that waits in a spool folder; None where none does.

    To ``keep`` its beginning lets a driver find the run again until `forget_beginning`.
    """
    if not (folder / BEGIN).exists():
        return None
    with FileLock(folder / LOCK, timeout=300):
        beginning = load_beginning(folder)
        run_id = begin_run(uri, beginning) if beginning else None
        if not keep:
            (folder / BEGIN).unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)  # who waited for it finds no beginning any more
    return run_id


def forget_beginning(folder: Path, run_id: str) -> None:
    """A driver has noted the run elsewhere; what only a placeholder names is still to be made."""
    if not is_offline(run_id):
        with contextlib.suppress(OSError):
            (folder / BEGIN).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    write_durably(path, json.dumps(content).encode())
