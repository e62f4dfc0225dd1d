"""Sends the spools that trainings left behind because their store did not respond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.tracking.client import artifact_root, connect
from pipeline.tracking.spool.offline_runs import (
    RUN_SPEC_FILE,
    SPOOL_FOLDER,
    create_spooled_run,
    is_placeholder,
    load_run_spec,
    load_spool_info,
)
from pipeline.tracking.spool.record_queue import SPOOL_INFO_FILE, spool_cache
from pipeline.tracking.tracker import Tracker

_SYNC_TIMEOUT_SECONDS = 3600.0


class SyncResult(NamedTuple):
    """The spool of one run; ``complete`` is False if records are still queued."""

    folder: str
    run_id: str
    complete: bool


def sync(storage: Path, uri: str | None, default_uri: Callable[[], str]) -> list[SyncResult]:
    """Send all spools under a storage and in the cache of this machine.

    Records go to ``uri``; if it is None, to the store of each run, or to ``default_uri`` if the
    spool does not name the store because its URI contained a secret. Spools of running trainings
    are left alone. Raises UserError if a store does not respond, and if a newer
    version of this software wrote a spool.
    """
    return [_send(folder, uri, default_uri) for folder in find_spools(storage)]


def find_spools(storage: Path) -> Iterator[Path]:
    """Yield the spool folders of runs and of the trials of sweeps that are not empty."""
    for root, patterns in (
        (storage, (f"*/{SPOOL_FOLDER}", f"*/*/{SPOOL_FOLDER}")),
        (spool_cache(), ("*",)),
    ):
        for pattern in patterns:
            for folder in sorted(root.glob(pattern)):
                if (folder / SPOOL_INFO_FILE).is_file() or (folder / RUN_SPEC_FILE).is_file():
                    yield folder


def _send(folder: Path, uri: str | None, default_uri: Callable[[], str]) -> SyncResult:
    info = load_spool_info(folder)
    if info is None:
        raise UserError(f"{folder}: {SPOOL_INFO_FILE} is missing, so the run is unknown")
    uri = uri or info.uri or default_uri()
    if spec := load_run_spec(folder):  # raises here instead of in the tracker, which would retry
        artifact_root(uri, spec.artifacts)
    connect(uri)
    tracker = Tracker(uri, info.run_id, folder, system_metrics=False)
    tracker.retry_rejected()
    complete = tracker.close(_SYNC_TIMEOUT_SECONDS)
    if complete and is_placeholder(info.run_id):
        create_spooled_run(folder, uri)  # needed if there were no records
    return SyncResult(str(folder), tracker.run_id, complete)
