"""Assignment health of one global batch, with the detector as it is between two steps."""

from __future__ import annotations

import torch

from model.assign.statistics import assignment_statistics, statistics_sums
from model.boxes import decode
from pipeline.data import Batch
from pipeline.training.trainer.trainer import Trainer

HEALTH_INTERVAL = 10  # in logged steps, since it costs a forward pass


@torch.no_grad()
def assignment_health(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """Return metrics ``assign/...`` over all ranks' first micro-batches; every rank calls it.

    The detector is in evaluation mode during the call, which leaves its statistics unchanged. It is
    not compiled for that mode, in which it runs too rarely.
    """
    world, detector = trainer.world, trainer.detector
    first = slice(trainer.config.train.micro_batch)
    images, boxes, labels, valid = (
        value[first].to(world.device)
        for value in (batch.images, batch.boxes, batch.labels, batch.valid)
    )
    labels = torch.where(valid.unsqueeze(-1), labels, -1)
    # A checkpoint has rank 0's statistics only, and a resumed run must log the same.
    world.broadcast_tensors(detector.buffers())
    training = detector.training
    detector.eval()
    deltas, logits = (value.float() for value in detector.forward(images))  # not compiled
    detector.train(training)
    predicted = decode(deltas, detector.anchors), logits.sigmoid()
    assigner, progress = trainer.loss.assigner, trainer.progress
    assigned = assigner(detector.anchors, boxes, labels, *predicted, progress=progress)
    sums = statistics_sums(assigned, boxes, labels, *predicted)
    total = world.sum(torch.stack(list(sums.values())))
    metrics = assignment_statistics(dict(zip(sums, total.tolist(), strict=True)))
    return {f"assign/{name}": value for name, value in metrics.items()}
