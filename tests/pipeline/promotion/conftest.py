"""A registered model with several versions, and evaluations of chosen quality."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from model import build_detector
from pipeline.config import Config, DetectorSpec
from pipeline.data import load_manifest
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.evaluation.protocol import score
from pipeline.metrics import match_images
from pipeline.registry import BundleContent, LoadedDetector, register
from pipeline.tracking import connect, create_run
from tests.pipeline.metrics.scenes import random_scenes
from tests.stores import new_store

CLASSES = ["circle", "square"]


class Store(NamedTuple):
    """A store with a model that has the versions 1 to 4."""

    uri: str
    run_ids: list[str]
    config: Config
    name: str = "shapes"


def add_version(uri: str, config: Config, classes: Sequence[str], name: str = "shapes") -> str:
    """Register a small untrained detector as the next version; return its run's id."""
    torch.manual_seed(0)
    detector = build_detector("slim", "retinanet", len(classes), 64).eval()
    run_id = create_run(uri, config, "train")
    content = BundleContent(
        name=name,
        weights=detector.state_dict(),
        spec=DetectorSpec(**detector.spec),
        classes=classes,
        config=config,
        metrics={"test/ap": 0.5},
    )
    register(uri, run_id, content)
    return run_id


def aliases_of(uri: str, name: str = "shapes") -> dict[str, int]:
    """Return the versions of a model by alias."""
    found = connect(uri).get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


@pytest.fixture
def store(tmp_path) -> Store:
    uri = new_store(tmp_path)
    config = Config.from_dict({"promote": {"resamples": 100}, "tracking": {"uri": uri}})
    return Store(uri, [add_version(uri, config, CLASSES) for _ in range(4)], config)


@pytest.fixture
def evaluate(scenes) -> Callable[..., ModelEvaluation]:
    """Return a function that gives version n the share n/4 of all objects found."""
    manifest = load_manifest(scenes["test"])

    def run(loaded: LoadedDetector, data: str, classes: Sequence[str] | None) -> ModelEvaluation:
        version = int(loaded.uri.rsplit("/", 1)[1])
        found = []
        for number, (name, truth, detected) in enumerate(random_scenes(0, 60, 2)):
            good = number % 4 < version
            boxes = truth.boxes if good else truth.boxes[:0]
            labels = truth.labels if good else truth.labels[:0]
            scores = np.ones(len(boxes), np.float32)
            found.append(
                (name, truth, replace(detected, boxes=boxes, scores=scores, labels=labels))
            )
        table = match_images(found)
        scored = list(classes or loaded.classes)
        return ModelEvaluation(
            loaded.uri, manifest, scored, Evaluation(score(table, scored, "coco"), table)
        )

    return run
