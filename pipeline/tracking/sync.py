"""Sending what trainings left in their spools because no store answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.tracking.client import connect
from pipeline.tracking.spool.offline_runs import (
    BEGIN,
    FOLDER,
    is_offline,
    load_about,
    make_run,
)
from pipeline.tracking.spool.record_queue import ABOUT, cache_folder
from pipeline.tracking.tracker import Tracker

_PATIENCE_SECONDS = 3600.0


class Synced(NamedTuple):
    """One run's spool; ``complete`` is False where something of it still waits."""

    folder: str
    run_id: str
    complete: bool


def sync(storage: Path, uri: str | None, default_uri: Callable[[], str]) -> list[Synced]:
    """Send all that waits under a storage and in this machine's cache.

    Everything goes to ``uri``, if None to where each run was to go, and to ``default_uri`` where
    that was not noted because it held a secret. What living trainings write is left to them.
    Raises UserError where a store does not answer.
    """
    return [_send(folder, uri, default_uri) for folder in waiting(storage)]


def waiting(storage: Path) -> Iterator[Path]:
    """Spool folders of runs, and of the trials of sweeps, that hold something."""
    for root, patterns in (
        (storage, (f"*/{FOLDER}", f"*/*/{FOLDER}")),
        (cache_folder(), ("*",)),
    ):
        for pattern in patterns:
            for folder in sorted(root.glob(pattern)):
                if (folder / ABOUT).is_file() or (folder / BEGIN).is_file():
                    yield folder


def _send(folder: Path, uri: str | None, default_uri: Callable[[], str]) -> Synced:
    about = load_about(folder)
    if about is None:
        raise UserError(f"{folder} has no {ABOUT} to say whose records these are")
    uri = uri or about["uri"] or default_uri()
    connect(uri)
    tracker = Tracker(uri, about["run_id"], folder, system_metrics=False)
    complete = tracker.close(_PATIENCE_SECONDS)
    if complete and is_offline(about["run_id"]):
        make_run(folder, uri)  # where nothing was recorded yet but its beginning
    return Synced(str(folder), tracker.run_id, complete)
