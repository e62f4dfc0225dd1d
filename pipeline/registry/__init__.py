"""Model versions: small self-contained bundles in the MLflow registry, and who is champion."""

from pipeline.registry.load import LoadedDetector, fetch, load_detector
from pipeline.registry.promote import Promotion, promote, rollback
from pipeline.registry.register import RegisteredVersion, register

__all__ = [
    "LoadedDetector",
    "Promotion",
    "RegisteredVersion",
    "fetch",
    "load_detector",
    "promote",
    "register",
    "rollback",
]
