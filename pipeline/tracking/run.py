"""The driver's hand on the run: begin it, go on with it, give it its true end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tracking.client import connect, mask
from pipeline.tracking.run_spec import DataSet, begin_run, describe, find_run, with_key
from pipeline.tracking.spool.offline_runs import (
    is_offline,
    load_beginning,
    make_run,
    offline_id,
    resolve_run,
    save_about,
    save_beginning,
)
from pipeline.tracking.tracker import Tracker

_LOG = logging.getLogger(__name__)
CLOSE_SECONDS = 30.0
Status = Literal["FINISHED", "FAILED", "KILLED"]


def create_run(
    uri: str,
    config: Config,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    dataset_manifests: Mapping[str, DataSet] | None = None,
    spool: Path | None = None,
) -> str:
    """Create the run and record config, revision, environment and data sets; returns its id.

    With a ``spool`` folder the beginning is noted there first, so that a driver that is killed on
    the way finds its run again, until it calls `forget_beginning`. A store that does not answer is
    a UserError within seconds; with a spool and ``tracking.required`` false it is a line, and the
    id a placeholder.
    """
    away = _away(uri, config.tracking.required or spool is None)
    beginning = describe(config, run_name, tags, parent_run_id, dataset_manifests)
    if spool is None:
        return begin_run(uri, beginning)
    earlier = load_beginning(spool)
    if earlier and all(earlier[part] == beginning[part] for part in ("params", "data")):
        beginning = with_key(beginning, earlier["key"])
    elif earlier and away is None:  # another run, since recorded params and data sets stay
        _leave(uri, earlier["key"])
    save_beginning(spool, beginning)
    save_about(spool, uri, offline_id(beginning))
    if away is not None:
        _say_offline(away, spool)
        return offline_id(beginning)
    run_id = make_run(spool, uri, keep=True)
    assert run_id is not None, "its beginning was just saved"
    return run_id


def resume_run(
    uri: str, run_id: str, spool: Path | None = None, after: str = "", required: bool = True
) -> str:
    """Set an existing run to RUNNING again and note the resume in its tags; returns its id.

    ``after`` says how it ended before. The tag ``resumes`` counts. A store that does not answer is
    a UserError, or a line where it is not ``required``: then the note waits in the spool.
    """
    note = history(f"resumed after {after or 'an end nobody noted'}")
    away = _away(uri, required or spool is None)
    if away is not None:
        assert spool is not None, "without a spool the store must answer"
        _say_offline(away, spool)
        tracker = Tracker(uri, run_id, spool, system_metrics=False)
        tracker.status("RUNNING")
        tracker.tag(*note)
        tracker.close(timeout=0)
        return run_id
    client = connect(uri)
    run_id = resolve_run(spool or Path(), client, uri, run_id)
    tags = client.get_run(run_id).data.tags
    client.set_tag(run_id, "resumes", str(int(tags.get("resumes", "0")) + 1))
    client.set_tag(run_id, *note)
    client.update_run(run_id, status="RUNNING")
    return run_id


def finish_run(
    uri: str,
    run_id: str,
    spool: Path,
    status: Status = "FINISHED",
    reason: str = "",
    timeout: float | None = None,
) -> bool:
    """Send what still waits in the spool and close the run with its true end.

    Never raises, since the result of a training does not depend on a tracking server: if nobody
    answers in ``timeout`` seconds (30) it warns, returns False, and the end waits in the spool.
    """
    try:
        tracker = Tracker(uri, run_id, spool, system_metrics=False)
        tracker.tag(*history(f"{status}{': ' if reason else ''}{reason}"))
        tracker.status(status)
        return tracker.close(CLOSE_SECONDS if timeout is None else timeout)
    except Exception as error:
        _LOG.warning("run %s ended as %s but cannot be closed: %s", run_id, status, error)
        return False


def _leave(uri: str, key: str) -> None:
    """Close what a killed driver has begun and nobody will go on with."""
    client = connect(uri)
    run_id = find_run(client, key)
    if run_id is not None:
        client.set_tag(run_id, *history("KILLED: begun again with another configuration"))
        client.set_terminated(run_id, "KILLED")


def known_run_id(uri: str, run_id: str, spool: Path) -> str:
    """The run's id in the store, for a placeholder too. Raises UserError where it is away."""
    return resolve_run(spool, connect(uri), uri, run_id) if is_offline(run_id) else run_id


def history(what: str) -> tuple[str, str]:
    """A tag that says what happened to the run, under a key that sorts by time."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"history.{now}", mask(what)[:500]


def _away(uri: str, required: bool) -> UserError | None:
    """Why the store does not answer; None if it does. Raises that where it is required."""
    try:
        connect(uri)
    except UserError as error:
        if required:
            raise
        return error
    return None


def _say_offline(error: UserError, spool: Path) -> None:
    print(
        f"{error}\ntracking.required is false: the run is recorded in {spool} and sent when the "
        "store answers, or by `python -m jobs.tracking sync`",
        file=sys.stderr,
        flush=True,
    )
