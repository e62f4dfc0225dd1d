"""Search the settings of post-processing of a trained detector on a shard set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from model import build_detector
from pipeline.data import build_eval_loader, load_manifest, require_classes
from pipeline.evaluation.model_evaluation import counted_batches, default_device, evaluation_config
from pipeline.evaluation.postprocessing.raw import predict_raw
from pipeline.evaluation.postprocessing.search import (
    BestSettings,
    Tried,
    find_best_settings,
    score_thresholds,
)
from pipeline.metrics.bootstrap import Interval, paired_bootstrap
from pipeline.metrics.table import IOU_THRESHOLDS
from pipeline.progress import Progress
from pipeline.registry import LoadedDetector


class ModelSearch(NamedTuple):
    """The best settings, and how much better they score than those of the training."""

    found: BestSettings
    metric: str
    """``ap`` or ``ap50``, which ranks the settings."""
    gain: Interval
    score_threshold: float | None
    """Of the highest F1 with the advised settings."""
    score_thresholds: dict[str, float]
    """The same, by class."""

    @property
    def distinguishable(self) -> bool:
        """Return whether the best settings are better beyond the choice of images."""
        return self.found.best != self.found.before and self.gain.low > 0

    @property
    def advised(self) -> Tried:
        """Return the best settings, or those of the training if the gain may be noise."""
        return self.found.best if self.distinguishable else self.found.before


def search_model(
    loaded: LoadedDetector,
    data: str,
    progress: Progress | None = None,
    report: Callable[[Tried], None] = lambda tried: None,
) -> ModelSearch:
    """Predict a set once and search on that, on a GPU if there is one. Raises UserError.

    The set must have the classes of the detector, in the same order.
    """
    require_classes(data, load_manifest(data), loaded.classes, loaded.uri)
    config, device = evaluation_config(loaded), default_device()
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)
    batches = counted_batches(build_eval_loader(data, config, 0, 1), progress)
    raw = predict_raw(detector.to(device).eval(), batches, config.evaluate, device)
    found = find_best_settings(raw, loaded.classes, config.evaluate, report)
    metric = config.evaluate.deciding_metric.removeprefix("val/")
    before, best = found.tables
    ious = (0,) if metric == "ap50" else tuple(range(len(IOU_THRESHOLDS)))
    protocol = config.evaluate.protocol
    gain = paired_bootstrap(best, before, len(loaded.classes), ious, protocol=protocol).interval()
    search = ModelSearch(found, metric, gain, None, {})
    table = best if search.distinguishable else before
    overall, by_class = score_thresholds(table, loaded.classes)
    return search._replace(score_threshold=overall, score_thresholds=by_class)
