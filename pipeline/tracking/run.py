"""The driver's part of a run: create it, resume it, finish it with its actual status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.config import Config
from pipeline.storage.redact import mask
from pipeline.tracking.client import (
    StoreError,
    StoreRejection,
    check_active,
    connect,
    exclusive_writes,
    store_errors,
)
from pipeline.tracking.run_spec import (
    HISTORY_TAG,
    DatasetManifest,
    build_run_spec,
    ensure_run,
    find_run,
)
from pipeline.tracking.spool.offline_runs import (
    create_spooled_run,
    is_placeholder,
    load_run_spec,
    placeholder_id,
    resolve_run,
    save_run_spec,
    save_spool_info,
)
from pipeline.tracking.tracker import Tracker

_LOG = logging.getLogger(__name__)
CLOSE_TIMEOUT_SECONDS = 30.0
_MAX_HISTORY_LENGTH = 500
FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]


def create_run(
    uri: str,
    config: Config,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    dataset_manifests: Mapping[str, DatasetManifest] | None = None,
    spool: Path | None = None,
) -> str:
    """Create the run with its configuration, revision, environment and data sets. Return its id.

    With a ``spool`` folder the spec is saved there first. A driver that was killed before it called
    `discard_run_spec` finds its run again.

    Raises UserError within seconds if the store does not respond or a request fails. With a spool
    and ``tracking.required`` false, print a message instead and return a placeholder id.
    """
    required = config.tracking.required or spool is None
    failure = _failure(uri, required, lambda: connect(uri))
    spec = build_run_spec(config, run_name, tags, parent_run_id, dataset_manifests)
    if spool is None:
        with store_errors(uri):
            return ensure_run(uri, spec)
    earlier = load_run_spec(spool)
    if earlier and earlier.same_inputs(spec):
        spec = spec.with_key(earlier.key)
    elif earlier and failure is None:  # params and data sets of a run cannot be changed
        key = earlier.key
        failure = _failure(uri, required, lambda: _close_replaced_run(uri, key))
    save_run_spec(spool, spec)
    save_spool_info(spool, uri, placeholder_id(spec))
    run_ids: list[str | None] = []
    if failure is None:
        create = partial(create_spooled_run, spool, uri, keep_spec=True)
        failure = _failure(uri, required, lambda: run_ids.append(create()))
    if failure is not None:
        _report_offline(failure, spool)
        return placeholder_id(spec)
    assert run_ids[0] is not None, "its spec was just saved"
    return run_ids[0]


def resume_run(
    uri: str,
    run_id: str,
    spool: Path | None = None,
    previous_exit: str = "",
    required: bool = True,
) -> str:
    """Set an existing run to RUNNING and record the resume in its tags. Return its id.

    ``previous_exit`` is the status with which it ended before, and what has changed since. The tag
    ``resumes`` counts resumes. Raises UserError if the run was deleted, and StoreError if the store
    does not respond; if that is not ``required``, print a message and queue the change in the spool
    instead.
    """
    exit_text = previous_exit or "a previous exit that was not recorded"
    note = history_tag(f"resumed after {exit_text}")
    run_ids: list[str] = []
    failure = _failure(
        uri,
        required or spool is None,
        lambda: run_ids.append(_reopen(uri, run_id, spool or Path(), note)),
    )
    if failure is None:
        return run_ids[0]
    assert spool is not None, "without a spool the store must respond"
    _report_offline(failure, spool)
    tracker = Tracker(uri, run_id, spool, system_metrics=False)
    tracker.set_status("RUNNING")
    tracker.set_tag(*note)
    tracker.close(timeout=0)
    return run_id


def finish_run(
    uri: str,
    run_id: str,
    spool: Path,
    status: FinalStatus = "FINISHED",
    reason: str = "",
    timeout: float | None = None,
) -> bool:
    """Send what is still queued in the spool and set the final status. Return whether all was sent.

    Never raises, since the result of a training does not depend on a tracking server. If the store
    does not respond within ``timeout`` seconds (30), log a warning and leave the rest in the spool.
    """
    try:
        tracker = Tracker(uri, run_id, spool, system_metrics=False)
        tracker.set_tag(*history_tag(f"{status}{': ' if reason else ''}{reason}"))
        tracker.set_status(status)
        return tracker.close(CLOSE_TIMEOUT_SECONDS if timeout is None else timeout)
    except Exception as error:
        _LOG.warning("run %s ended as %s but cannot be closed: %s", run_id, status, error)
        return False


def resolve_run_id(uri: str, run_id: str, spool: Path) -> str:
    """Return the run's id in the store, also for a placeholder.

    Raises StoreError if the run is a placeholder and the store does not respond.
    """
    return resolve_run(spool, connect(uri), uri, run_id) if is_placeholder(run_id) else run_id


def history_tag(event: str) -> tuple[str, str]:
    """Return a tag that records an event of the run, under a key that sorts by time."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"{HISTORY_TAG}{now}", mask(event)[:_MAX_HISTORY_LENGTH]


def _reopen(uri: str, run_id: str, spool: Path, note: tuple[str, str]) -> str:
    client = connect(uri)
    run_id = resolve_run(spool, client, uri, run_id)
    run = client.get_run(run_id)
    check_active(uri, run)
    tags = run.data.tags
    with exclusive_writes(uri):
        client.set_tag(run_id, "resumes", str(int(tags.get("resumes", "0")) + 1))
        client.set_tag(run_id, *note)
        client.update_run(run_id, status="RUNNING")
    return run_id


def _close_replaced_run(uri: str, key: str) -> None:
    """Close the run that a killed driver created and that will not be resumed."""
    client = connect(uri)
    run_id = find_run(client, key)
    if run_id is not None:
        client.set_tag(run_id, *history_tag("KILLED: restarted with a different configuration"))
        client.set_terminated(run_id, "KILLED")


def _failure(
    uri: str, required: bool, call: Callable[[], object]
) -> StoreError | StoreRejection | None:
    """Call a function that sends requests to the store. Return why they failed, or None.

    Raises StoreError or StoreRejection instead if the store is required.
    """
    try:
        with store_errors(uri):
            call()
    except (StoreError, StoreRejection) as error:
        if required:
            raise
        return error
    return None


def _report_offline(error: Exception, spool: Path) -> None:
    print(
        f"{error}\ntracking.required is false: the run is recorded in {spool} and sent when the "
        "store responds, or by `python -m jobs.tracking sync`",
        file=sys.stderr,
        flush=True,
    )
