"""Predict with a trained detector by the code of this project, whatever code its bundle has."""

from __future__ import annotations

from model import build_detector
from model.postprocess import postprocess
from pipeline.config import EvaluateConfig
from pipeline.data.transforms import decode, resize
from pipeline.registry.load import LoadedDetector
from pipeline.registry.pyfunc_model import Code, Description, RegisteredDetector


def own_detector(loaded: LoadedDetector) -> RegisteredDetector:
    """Return what a bundle's pyfunc model does, built from weights and description alone.

    Raises RuntimeError or ValueError if the weights do not fit the description.
    """
    description = Description(
        package="",
        spec=loaded.spec.model_dump(),
        classes=loaded.classes,
        fit=loaded.fit,
        defaults=loaded.defaults.model_dump(),
        score_thresholds=dict(loaded.score_thresholds),
        max_candidates=loaded.evaluate.get("max_candidates", EvaluateConfig().max_candidates),
        class_agnostic=loaded.evaluate.get("class_agnostic", False),
        temperature=loaded.temperature,
    )
    detector = RegisteredDetector()
    detector.load(description, Code(decode, resize, postprocess, build_detector), loaded.state)
    return detector
