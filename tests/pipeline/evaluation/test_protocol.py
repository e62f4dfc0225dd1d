"""Test that the protocol decides what is logged and by which metric checkpoints are ranked."""

import pytest

from pipeline.config import Config
from pipeline.evaluation.protocol import score
from pipeline.metrics import match_images
from tests.pipeline.checkpoints.examples import example_meta
from tests.pipeline.metrics.scenes import random_scenes

CLASSES = ["a", "b"]


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc"])
def test_protocols_give_different_figures_under_the_same_names(protocol) -> None:
    table = match_images(random_scenes(0, 30, 2))
    found = score(table, CLASSES, protocol)
    assert {"ap", "ap50", "ap75"} <= set(found.metrics)
    assert ("ar_100" in found.metrics) == (protocol == "coco")
    assert found.metrics["ap50"] == pytest.approx(
        sum(found.per_class[name]["ap50"] for name in CLASSES) / 2
    )
    others = [score(table, CLASSES, other) for other in ("coco", "voc07", "voc")]
    assert len({other.metrics["ap50"] for other in others}) == 3


@pytest.mark.parametrize(("protocol", "expected"), [("coco", 0.2), ("voc07", 0.9), ("voc", 0.9)])
def test_checkpoints_are_ranked_by_the_metric_of_the_protocol(protocol, expected) -> None:
    config = Config.from_dict({"evaluate": {"protocol": protocol}})
    metrics = {"val/ap": 0.2, "val/ap50": 0.9}
    meta = example_meta(config=config.recorded(), metrics=metrics)
    assert meta.score == expected
    assert metrics[config.evaluate.deciding_metric] == expected
