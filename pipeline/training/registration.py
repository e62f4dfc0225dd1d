"""Register the result of a finished training, waiting for a store that restarts."""

from __future__ import annotations

import sys

from pipeline.checkpoints.format import load_averaged_weights
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.registry import BundleContent, RegisteredVersion, register
from pipeline.storage.redact import error_line
from pipeline.tracking import (
    RunDeletedError,
    is_rejected,
    resolve_run_id,
    spool_folder,
    wait_for_store,
)
from pipeline.training.outcome import Finished
from pipeline.training.run_record import RunRecord

STORE_WAIT_SECONDS = 60.0  # for a store that does not respond
_ATTEMPTS = 3


def register_result(
    config: Config,
    uri: str,
    run_id: str,
    record: RunRecord,
    checkpoint: str,
    outcome: Finished,
) -> RegisteredVersion | None:
    """Register the selected weights as ``registry.name``; return None if that is not set.

    Waits for a store that restarts, and does not create again what the store already has. Raises
    OutageError if the store stays away: the same command registers the finished training later.
    """
    if config.registry.name is None:
        return None
    print(f"registering {config.registry.name} ...", file=sys.stderr, flush=True)
    content = BundleContent(
        name=config.registry.name,
        weights=load_averaged_weights(checkpoint),
        spec=outcome.spec,
        classes=outcome.classes,
        config=config,
        metrics=outcome.metrics,
    )
    for is_last in [False] * (_ATTEMPTS - 1) + [True]:
        try:
            wait_for_store(uri, STORE_WAIT_SECONDS)
        except (UserError, OutageError) as error:
            kind = OutageError if isinstance(error, OutageError) else UserError
            raise kind(
                f"training is complete, but nothing was registered: {error}; run the same command "
                "again once the store responds"
            ) from None
        try:
            return register(uri, resolve_run_id(uri, run_id, spool_folder(record.uri)), content)
        except RunDeletedError as error:
            raise UserError(
                f"training is complete, but nothing was registered: {error} and run the same "
                "command again"
            ) from None
        except (UserError, OutageError):
            raise
        except Exception as error:  # stores raise errors of many types when they shut down
            if is_rejected(error) if is_last else is_rejected(error, attempts=1):
                raise UserError(
                    f"training is complete, but nothing was registered: {error_line(error)}; run "
                    "the same command again when the server accepts the model"
                ) from None
            if is_last:
                raise
            print(f"registering again after: {error_line(error)}", file=sys.stderr, flush=True)
    raise AssertionError("the last attempt returns or raises")
