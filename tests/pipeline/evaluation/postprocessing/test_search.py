"""Cached predictions give the detections of an evaluation, and the best settings are found."""

import numpy as np
import pytest
import torch

from model import build_detector
from model.postprocess import Candidates
from pipeline.config import Config, EvaluateConfig
from pipeline.data import Sample, build_eval_loader, load_manifest
from pipeline.evaluation.evaluate import detect
from pipeline.evaluation.postprocessing.raw import RawPredictions, _RawBatch, predict_raw
from pipeline.evaluation.postprocessing.search import (
    Settings,
    find_best_settings,
    score_thresholds,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "settings", [Settings(0.5, False, 100), Settings(0.3, True, 20), Settings(0.8, False, 300)]
)
def test_cached_predictions_give_the_detections_of_an_evaluation(
    scenes: dict[str, str], settings: Settings
) -> None:
    torch.manual_seed(0)
    uri = scenes["test"]
    detector = build_detector("slim", "retinanet", len(load_manifest(uri).classes), 64).eval()
    tree = {
        "model": {"image_size": 64},
        "data": {"loader_workers": 0},
        "evaluate": {"score_threshold": 0.011, **settings._asdict()},
    }
    config = Config.from_dict(tree)
    batches = list(build_eval_loader(uri, config, 0, 1))
    raw = predict_raw(detector, batches, config.evaluate, CPU)
    assert raw.images == 6
    expected = list(detect(detector, batches, config.evaluate, CPU))
    assert sum(len(found.scores) for _, found in expected) > 6
    for (sample, found), (other, same) in zip(expected, raw.detections(*settings), strict=True):
        assert sample is other
        for one, two in zip(
            (found.boxes, found.scores, found.labels),
            (same.boxes, same.scores, same.labels),
            strict=True,
        ):
            np.testing.assert_array_equal(one, two)


Labelled = tuple[tuple[float, ...], int]


def raw_predictions(
    objects: list[Labelled], found: list[tuple[tuple[float, ...], float, int]]
) -> RawPredictions:
    """Return the predictions for one image of 100 x 100 px."""
    none = [False] * len(objects)
    sample = Sample.make(
        image_id="a",
        file_name="a.png",
        width=100,
        height=100,
        boxes=[box for box, _ in objects],
        labels=[label for _, label in objects],
        difficult=none,
        crowd=none,
        area=[900.0] * len(objects),
    )
    boxes = torch.tensor([[box for box, _, _ in found]])
    scores = torch.tensor([[score for _, score, _ in found]])
    labels = torch.tensor([[label for _, _, label in found]])
    valid = torch.ones_like(labels, dtype=torch.bool)
    candidates = Candidates(boxes, scores, labels, valid)
    ones = torch.ones(1, 4)
    return RawPredictions([_RawBatch(candidates, [sample], ones, 100 * ones)])


LEFT, RIGHT = (0.0, 0.0, 40.0, 40.0), (10.0, 0.0, 50.0, 40.0)  # IoU 0.6
SHIFTED = (3.0, 0.0, 43.0, 40.0)  # IoU 0.86 with the left one
FAR = (60.0, 60.0, 90.0, 90.0)


def test_objects_that_overlap_need_a_higher_iou() -> None:
    raw = raw_predictions([(LEFT, 0), (RIGHT, 0)], [(LEFT, 0.9, 0), (RIGHT, 0.8, 0)])
    found = find_best_settings(raw, ["cat"], EvaluateConfig())
    assert found.before.settings == (0.5, False, 100)
    assert found.best.settings == (0.6, False, 100)
    assert found.best.metrics["ap"] == pytest.approx(1.0)
    assert found.before.metrics["ap"] == pytest.approx(51 / 101)
    assert score_thresholds(found.tables[1], ["cat"]) == (
        pytest.approx(0.8),
        {"cat": pytest.approx(0.8)},
    )


def test_second_class_on_one_object_needs_suppression_across_classes() -> None:
    raw = raw_predictions([(LEFT, 0), (FAR, 1)], [(LEFT, 0.9, 0), (SHIFTED, 0.8, 1), (FAR, 0.6, 1)])
    found = find_best_settings(raw, ["cat", "dog"], EvaluateConfig())
    assert found.best.settings.class_agnostic
    assert found.best.metrics["ap"] == pytest.approx(1.0)
    assert found.before.metrics["ap"] == pytest.approx(0.75)


def test_configured_settings_win_among_equals() -> None:
    raw = raw_predictions([(LEFT, 0)], [(LEFT, 0.9, 0)])
    given = EvaluateConfig(nms_iou=0.45, max_detections=7)
    found = find_best_settings(raw, ["cat"], given)
    assert found.best == found.before and found.best.settings == (0.45, False, 7)
    assert len({item.settings for item in found.tried}) == len(found.tried) > 12
