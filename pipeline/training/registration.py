"""From a finished training to a registered version, whatever the store does meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pipeline.checkpoints.format import load_averaged_weights
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.registry import RegisteredVersion, register
from pipeline.tracking import mask, resolve_run_id, spool_folder, wait_for_store
from pipeline.training.run_record import RunRecord

STORE_SECONDS = 60.0  # how long a store that is away is waited for
_TRIES = 3


def register_result(
    config: Config,
    uri: str,
    run_id: str,
    record: RunRecord,
    checkpoint: str,
    outcome: Mapping[str, Any],
) -> RegisteredVersion | None:
    """Register the chosen weights under ``registry.name``; None where that is not set.

    A store that restarts in the middle is waited for, and what it has already is not made again.
    Raises UserError if it stays away: the same command registers the finished training later.
    """
    if config.registry.name is None:
        return None
    print(f"registering {config.registry.name} ...", file=sys.stderr, flush=True)
    weights = load_averaged_weights(checkpoint)
    for last in [False] * (_TRIES - 1) + [True]:
        try:
            wait_for_store(uri, STORE_SECONDS)
        except UserError as error:
            raise UserError(
                f"the training is complete, but nothing was registered: {error}; the same command "
                "registers it as soon as the store answers"
            ) from None
        try:
            return register(
                uri,
                resolve_run_id(uri, run_id, spool_folder(record.uri)),
                config.registry.name,
                weights=weights,
                spec=outcome["spec"],
                classes=outcome["classes"],
                config=config,
                metrics=outcome["metrics"],
            )
        except UserError:
            raise
        except Exception as error:  # stores say all kinds of things when they go away
            if last:
                raise
            print(f"registering again after: {mask(str(error))[:300]}", file=sys.stderr, flush=True)
    raise AssertionError("the last try returns or raises")
