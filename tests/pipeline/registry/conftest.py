"""Two small untrained registered detectors with different classes and backbones."""

from typing import NamedTuple

import pytest
import torch

from model import Detector, build_detector
from pipeline.config import Config, DetectorSpec
from pipeline.registry import BundleContent, RegisteredVersion, register
from pipeline.tracking import create_run
from tests.stores import new_store


class Registered(NamedTuple):
    uri: str
    run_ids: list[str]
    detectors: list[Detector]
    classes: list[list[str]]
    versions: list[RegisteredVersion]
    config: Config


ANCHORS = {"anchor_base": 20.0, "anchor_scales": (1.0, 1.3, 1.7), "anchor_ratios": (1.0, 0.4)}
TEMPERATURE = 2.0  # of the first version
CONFIG = {"registry": {"score_threshold": 0.0}, "evaluate": {"max_detections": 20}}


def build(seed, classes, backbone, size, **anchors):
    torch.manual_seed(seed)
    detector = build_detector(backbone, "retinanet", len(classes), size, **anchors).eval()
    # Spread the scores, so ranks do not depend on rounding.
    for parameter in detector.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return detector


@pytest.fixture(scope="package")
def registered(tmp_path_factory):
    uri = new_store(tmp_path_factory.mktemp("registry"))
    config = Config.from_dict(CONFIG)
    classes = [["circle", "square"], ["cat", "dog", "bird"]]
    detectors = [
        build(0, classes[0], "slim", 64),
        build(1, classes[1], "efficientnet_lite0", 128, **ANCHORS),
    ]
    run_ids = [create_run(uri, config, name, {"data.val.fingerprint": "f" * 64}) for name in "ab"]
    temperatures = [TEMPERATURE, None]
    versions = [
        register(
            uri,
            run_id,
            BundleContent(
                name="shapes",
                weights=detector.state_dict(),
                spec=DetectorSpec(**detector.spec),
                classes=names,
                config=config,
                metrics={"test/ap": 0.5, "test/ap50": 0.75},
                temperature=temperature,
            ),
        )
        for run_id, detector, names, temperature in zip(
            run_ids, detectors, classes, temperatures, strict=True
        )
    ]
    return Registered(uri, run_ids, detectors, classes, versions, config)
