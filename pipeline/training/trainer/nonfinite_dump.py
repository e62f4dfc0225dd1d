"""Save the batch of a step whose gradient is not finite, to find the cause later."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import torch

from pipeline.data import Batch
from pipeline.storage.folder import Storage
from pipeline.training.trainer.gradient_check import NonFiniteGradientError
from pipeline.training.trainer.trainer import Trainer

DUMP_FOLDER = "not-finite"

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def skip_or_dump_nonfinite(storage: Storage, trainer: Trainer) -> Iterator[None]:
    """Save each rank's share of a batch with a non-finite gradient; skip the step or raise.

    ``torch.load(FILE, weights_only=True)`` returns the batch's fields by name. If the step may not
    be skipped, raises FloatingPointError with the path.
    """
    try:
        yield
    except NonFiniteGradientError as error:
        step, limit = error.step, trainer.config.train.skip_non_finite
        saved = _dump(storage, error.batch, f"step-{step:08d}-rank-{trainer.world.rank}.pt")
        if not trainer.skip_step():
            raise FloatingPointError(
                f"{error}; lower train.lr or train.clip_norm, raise train.skip_non_finite "
                f"({limit}), or inspect the batch, {saved}; a resumed run continues from the last "
                "checkpoint"
            ) from None
        if trainer.world.is_main:
            count = f"{trainer.skipped_steps} of at most {limit}, train.skip_non_finite"
            _LOG.warning(
                "the gradient is not finite at step %d: skipped (%s); the batch is %s",
                *(step, count, saved),
            )


def _dump(storage: Storage, batch: Batch, name: str) -> str:
    """Save a batch, if possible; return where it is or why it is not saved."""
    content = io.BytesIO()
    torch.save(batch._asdict(), content)
    try:
        storage.child(DUMP_FOLDER).create()
        storage.write(f"{DUMP_FOLDER}/{name}", content.getvalue())
    except OSError as error:
        return f"not saved ({error})"
    return f"saved in {storage}/{DUMP_FOLDER}"
