"""Model versions: self-contained bundles in the MLflow registry, and the champion alias."""

from pipeline.registry.bundle import BundleContent
from pipeline.registry.load import LoadedDetector, fetch_model, load_detector
from pipeline.registry.promote import Promotion, promote, rollback
from pipeline.registry.register import RegisteredVersion, register

__all__ = [
    "BundleContent",
    "LoadedDetector",
    "Promotion",
    "RegisteredVersion",
    "fetch_model",
    "load_detector",
    "promote",
    "register",
    "rollback",
]
