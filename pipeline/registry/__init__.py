"""Model versions: self-contained bundles in the MLflow registry, and how they are loaded."""

from pipeline.registry.bundle import BundleContent
from pipeline.registry.load import LoadedDetector, fetch_model, load_detector
from pipeline.registry.register import RegisteredVersion, register

__all__ = [
    "BundleContent",
    "LoadedDetector",
    "RegisteredVersion",
    "fetch_model",
    "load_detector",
    "register",
]
