"""Save the batch of a step whose gradient is not finite, to find the cause later."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch

from pipeline.data import Batch
from pipeline.storage.folder import Storage
from pipeline.training.trainer.trainer import Trainer

DUMP_FOLDER = "not-finite"


@contextlib.contextmanager
def dump_on_nonfinite(storage: Storage, batch: Batch, trainer: Trainer) -> Iterator[None]:
    """Save each rank's share of a batch with a non-finite gradient, and add where to the error.

    The weights are those before the step, and checkpoints stay as they are.
    ``torch.load(FILE, weights_only=True)`` returns the batch's fields by name.
    """
    try:
        yield
    except FloatingPointError as error:
        name = f"{DUMP_FOLDER}/step-{trainer.step_count:08d}-rank-{trainer.world.rank}.pt"
        content = io.BytesIO()
        torch.save(batch._asdict(), content)
        try:
            storage.child(DUMP_FOLDER).create()
            storage.write(name, content.getvalue())
        except OSError as lost:
            raise FloatingPointError(f"{error} (which could not be saved: {lost})") from None
        raise FloatingPointError(
            f"{error}, saved in {storage}/{DUMP_FOLDER}; a resumed run continues from the last "
            "checkpoint"
        ) from None
