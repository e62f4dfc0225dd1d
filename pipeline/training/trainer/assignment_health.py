"""Assignment health of one global batch, with the detector as it is between two steps."""

from __future__ import annotations

import torch

from model.assign.statistics import health, health_sums
from model.boxes import decode
from pipeline.data import Batch
from pipeline.training.trainer.trainer import Trainer

EVERY = 10  # logged steps; a look costs a forward pass


@torch.no_grad()
def assignment_health(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """Figures over all ranks' first micro-batches, ``assign/...``; every rank calls it.

    The detector is in evaluation mode meanwhile, so that no statistics move.
    """
    world, detector = trainer.world, trainer.detector
    first = slice(trainer.config.train.micro_batch)
    images, boxes, labels, valid = (
        value[first].to(world.device)
        for value in (batch.images, batch.boxes, batch.labels, batch.valid)
    )
    labels = torch.where(valid.unsqueeze(-1), labels, -1)
    training = detector.training
    detector.eval()
    deltas, logits = (value.float() for value in detector(images))
    detector.train(training)
    found = decode(deltas, detector.anchors), logits.sigmoid()
    assigned = trainer.loss.assigner(detector.anchors, boxes, labels, *found)
    sums = health_sums(assigned, boxes, labels, *found)
    total = world.sum(torch.stack(list(sums.values())))
    figures = health(dict(zip(sums, total.tolist(), strict=True)))
    return {f"assign/{name}": value for name, value in figures.items()}
