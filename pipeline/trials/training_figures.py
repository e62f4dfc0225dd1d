"""Figures of a training that its MLflow run has, and its checkpoints do not."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from pipeline.storage.folder import join
from pipeline.tracking import connect, resolve_run_id, spool_folder
from pipeline.tracking.client import StoreRejection, store_errors
from pipeline.training.run_record import RunRecord

_HEALTH = "assign/"


@dataclass(frozen=True)
class TrainingFigures:
    """The median seconds per step, and the last figures ``assign/...``, without the prefix."""

    seconds_per_step: float | None = None
    health: dict[str, float] = field(default_factory=dict)


def training_figures(uri: str, storage: str, name: str, batch_size: int) -> TrainingFigures:
    """Read the figures of a run in a folder; those that were not logged are absent.

    Raises OutageError if the store does not respond.
    """
    info = RunRecord(storage, name).read()
    if info is None:
        return TrainingFigures()
    client = connect(uri)
    try:
        with store_errors(uri):
            run_id = resolve_run_id(uri, info.run_id, spool_folder(join(storage, name)))
            metrics = client.get_run(run_id).data.metrics
            rates = client.get_metric_history(run_id, "train/images_per_second")
    except StoreRejection:
        return TrainingFigures()  # the run was deleted
    values = [point.value for point in rates if point.value > 0]
    return TrainingFigures(
        batch_size / statistics.median(values) if values else None,
        {
            key.removeprefix(_HEALTH): value
            for key, value in sorted(metrics.items())
            if key.startswith(_HEALTH)
        },
    )
