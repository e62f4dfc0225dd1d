"""Score the selected checkpoint of a trial on ``data.val``, and search its post-processing."""

from __future__ import annotations

from typing import cast

import torch

from model import build_detector
from pipeline.checkpoints.meta import UNSCORED
from pipeline.checkpoints.store import CheckpointStore, SavedCheckpoint, by_score
from pipeline.config import Config
from pipeline.data import build_eval_loader, load_manifest
from pipeline.distributed.precision import Precision
from pipeline.errors import UserError
from pipeline.evaluation.model_evaluation import default_device, evaluation_config
from pipeline.evaluation.postprocessing.raw import RawPredictions, predict_raw
from pipeline.evaluation.postprocessing.search import search_settings
from pipeline.evaluation.protocol import score
from pipeline.registry import load_detector
from pipeline.storage.folder import join
from pipeline.storage.redact import mask
from pipeline.trials.outcome_record import TrialOutcome, store_outcome
from pipeline.trials.training_figures import TrainingFigures


def selected_checkpoint(storage: str, name: str) -> SavedCheckpoint | None:
    """Return the best checkpoint of a trial, or None if no evaluated one is left."""
    best = by_score(CheckpointStore(join(storage, name)).saved())[:1]
    return best[0] if best and best[0].meta.score > UNSCORED else None


def score_trial(
    config: Config, storage: str, name: str, figures: TrainingFigures | None = None
) -> TrialOutcome:
    """Score a trial in this process, on a GPU if it has one, and store the outcome.

    ``config`` is that of the trial. Raises UserError if no evaluated checkpoint is left, or if
    ``data.val`` has changed since the training.
    """
    figures = figures or TrainingFigures()
    selected = selected_checkpoint(storage, name)
    if selected is None:
        raise UserError("it has no evaluated checkpoint")
    assert config.data.val is not None, "trials are scored on it"
    meta, content = selected.meta, load_manifest(config.data.val).content_hash
    if content != meta.data.val:
        raise UserError(f"data.val {mask(config.data.val)} has changed since its training")
    raw, settings = _predict(config, join(join(storage, name), selected.name), selected)
    search = search_settings(raw, meta.classes, settings.evaluate)
    outcome = TrialOutcome(
        checkpoint=selected.name,
        step=selected.step,
        epoch=meta.epoch,
        weights_sha256=meta.ema_sha256,
        data=content,
        metric=search.found.metric,
        metrics={key.removeprefix("val/"): value for key, value in (meta.metrics or {}).items()},
        per_class=score(search.before, meta.classes, settings.evaluate.protocol).per_class,
        low=search.interval.low,
        high=search.interval.high,
        seconds_per_step=figures.seconds_per_step,
        health=figures.health,
        postprocessing=search.found,
    )
    return store_outcome(storage, name, outcome, raw, search.before)


def _predict(config: Config, uri: str, selected: SavedCheckpoint) -> tuple[RawPredictions, Config]:
    """Predict as the training evaluated: batches, precision and memory layout decide last bits."""
    loaded, meta, device = load_detector(uri), selected.meta, default_device()
    settings = evaluation_config(loaded, config)
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)
    channels_last = meta.config.get("train", {}).get("channels_last", False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    detector.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    precision = cast("Precision", meta.precision) if meta.device == device.type else None
    batches = build_eval_loader(str(config.data.val), settings, 0, 1)
    return predict_raw(
        detector.eval(), batches, settings.evaluate, device, precision or "fp32"
    ), settings
