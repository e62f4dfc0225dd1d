"""Search the settings of post-processing of a trained detector on a shard set."""

from __future__ import annotations

from collections.abc import Callable

from model import build_detector
from pipeline.data import build_eval_loader, load_manifest, require_classes
from pipeline.evaluation.model_evaluation import counted_batches, default_device, evaluation_config
from pipeline.evaluation.postprocessing.raw import predict_raw
from pipeline.evaluation.postprocessing.search import Search, search_settings
from pipeline.evaluation.postprocessing.settings import Tried
from pipeline.progress import Progress
from pipeline.registry import LoadedDetector


def search_model(
    loaded: LoadedDetector,
    data: str,
    progress: Progress | None = None,
    report: Callable[[Tried], None] = lambda tried: None,
) -> Search:
    """Predict a set once and search on that, on a GPU if there is one. Raises UserError.

    The set must have the classes of the detector, in the same order.
    """
    require_classes(data, load_manifest(data), loaded.classes, loaded.uri)
    config, device = evaluation_config(loaded), default_device()
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)
    batches = counted_batches(build_eval_loader(data, config, 0, 1), progress)
    raw = predict_raw(detector.to(device).eval(), batches, config.evaluate, device)
    return search_settings(raw, loaded.classes, config.evaluate, report)
