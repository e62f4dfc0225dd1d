"""Register the result of a finished training, waiting for a store that restarts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.checkpoints.format import load_averaged_weights, load_meta
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.registry import BundleContent, RegisteredVersion, register
from pipeline.registry.model_card import DataSummary
from pipeline.storage.redact import error_line, mask
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
    data: Sequence[DataSummary] = (),
) -> RegisteredVersion | None:
    """Register the selected weights as ``registry.name``.

    Returns None if that is not set, and if the training has learned too little.
    Waits for a store that restarts, and does not create again what the store already has. Raises
    OutageError if the store stays away: the same command registers the finished training later.
    """
    if config.registry.name is None:
        return None
    if problem := _below_minimum(config, outcome):
        print(
            f"not registered: {problem}; to register it all the same, run python -m jobs.register "
            f"--run {mask(checkpoint)} --name {config.registry.name}",
            file=sys.stderr,
            flush=True,
        )
        return None
    print(f"registering {config.registry.name} ...", file=sys.stderr, flush=True)
    content = BundleContent(
        name=config.registry.name,
        weights=load_averaged_weights(checkpoint),
        spec=outcome.spec,
        classes=outcome.classes,
        config=config,
        metrics=outcome.metrics,
        temperature=load_meta(checkpoint).temperature,
        data=data,
        summary=outcome.test,
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


def _below_minimum(config: Config, outcome: Finished) -> str | None:
    """Return why the weights are not worth a version, or None."""
    minimum = config.registry.min_ap
    name = next((name for name in ("val/ap", "test/ap") if name in outcome.metrics), None)
    if minimum is None or name is None or outcome.metrics[name] > minimum:
        return None
    return (
        f"{name} {outcome.metrics[name]:.4f} is not above registry.min_ap {minimum:g} (the "
        "training was too short, has diverged, or its data is wrong)"
    )
