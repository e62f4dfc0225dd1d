"""The end of a driver of trials: their runs in MLflow, their checkpoints, a lost lease."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.checkpoints.store import CheckpointStore
from pipeline.storage.folder import join
from pipeline.tracking import connect, finish_run, spool_folder
from pipeline.tracking.run import FinalStatus
from pipeline.training.run_record import RunRecord
from pipeline.training.stop import StopSignal
from pipeline.trials.trial_records import TrialRecords, TrialState

MAX_CHILD_RUNS = 10_000
_END: dict[TrialState, FinalStatus] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped early": "KILLED",
    "unfinished": "KILLED",
}


def interrupt(stop: StopSignal) -> None:
    """End the main thread as Ctrl-C does, also where a background job ignores Ctrl-C."""
    stop.request("taken over")
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def child_runs(uri: str, parent_run_id: str) -> dict[str, Any]:
    """Return the MLflow runs of the trials by name."""
    client = connect(uri)
    parent = client.get_run(parent_run_id)
    found = client.search_runs(
        [parent.info.experiment_id],
        filter_string=f"tags.mlflow.parentRunId = '{parent_run_id}'",
        max_results=MAX_CHILD_RUNS,
    )
    return {run.data.tags["trial"]: run for run in found if "trial" in run.data.tags}


def close_child_runs(
    uri: str, runs: Mapping[str, Any], records: TrialRecords, storage: str, stopped: str
) -> None:
    """Set the end of each trial in MLflow that could not close its run itself.

    ``stopped`` is the reason for unfinished trials.
    """
    for name, record in records.all.items():
        run = runs.get(name)
        if run is not None and run.info.status == "RUNNING":
            reason = {"stopped early": "stopped early by asha", "failed": record.error}
            spool = spool_folder(join(storage, name))
            text = reason.get(record.state, stopped)
            finish_run(uri, run.info.run_id, spool, _END[record.state], text)


@contextlib.contextmanager
def closed_on_interrupt(
    record: RunRecord, uri: str, run_id: str, known: Iterable[tuple[TrialRecords, str]]
) -> Iterator[None]:
    """Set the ends of trials in MLflow if Ctrl-C ends the block, in which their processes run.

    ``record`` and ``run_id`` are of their parent, ``known`` are records with their folders.
    """
    try:
        yield
    except KeyboardInterrupt:
        if record.lost() is None:
            with contextlib.suppress(Exception):  # a store that fails must not hide Ctrl-C
                runs = child_runs(uri, run_id)
                for records, storage in known:
                    close_child_runs(uri, runs, records, storage, "interrupted")
        raise


def delete_checkpoints(storage: str, names: Iterable[str]) -> None:
    """Delete the checkpoints of trials, since their recipes give them again."""
    for name in names:
        store = CheckpointStore(join(storage, name))
        with contextlib.suppress(OSError):  # only costs space
            for item in store.saved():
                store.discard(item.step)
