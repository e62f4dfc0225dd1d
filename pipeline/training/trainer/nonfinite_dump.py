"""What is kept of a step that must not happen, for whoever looks for the reason."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch

from pipeline.data import Batch
from pipeline.storage.folder import Storage
from pipeline.training.trainer.trainer import Trainer

FOLDER = "not-finite"


@contextlib.contextmanager
def kept_if_not_finite(storage: Storage, batch: Batch, trainer: Trainer) -> Iterator[None]:
    """Keep each rank's share of the batch whose gradient is not finite, and say where it is.

    The weights are those before the step, and the checkpoints are left as they are.
    ``torch.load(FILE, weights_only=True)`` gives the batch's fields by name.
    """
    try:
        yield
    except FloatingPointError as error:
        name = f"{FOLDER}/step-{trainer.step_count:08d}-rank-{trainer.world.rank}.pt"
        content = io.BytesIO()
        torch.save(batch._asdict(), content)
        try:
            storage.child(FOLDER).create()
            storage.write(name, content.getvalue())
        except OSError as lost:
            raise FloatingPointError(f"{error} (they could not be kept: {lost})") from None
        raise FloatingPointError(
            f"{error}, kept in {storage}/{FOLDER}; a resumed run goes on from the checkpoint before"
        ) from None
