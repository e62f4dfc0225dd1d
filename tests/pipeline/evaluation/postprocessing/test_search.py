"""Cached predictions give the detections of an evaluation, and the best settings are found."""

from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from model import Detector, build_detector
from pipeline.config import Config, EvaluateConfig
from pipeline.data import EvalBatch, build_eval_loader, load_manifest
from pipeline.evaluation.evaluate import detect, match_detections
from pipeline.evaluation.postprocessing.matcher import SettingsMatcher
from pipeline.evaluation.postprocessing.raw import RawPredictions, predict_raw
from pipeline.evaluation.postprocessing.search import search_settings
from pipeline.evaluation.postprocessing.settings import Settings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(0.5, False, 100),
        Settings(0.3, True, 20),
        Settings(0.3, False, 20),
        Settings(0.0, True, 5),
        Settings(0.8, True, 300),
    ],
)
def test_cached_predictions_give_the_matches_of_an_evaluation(
    evaluated: tuple[Detector, list[EvalBatch], RawPredictions, SettingsMatcher], settings: Settings
) -> None:
    detector, batches, raw, matcher = evaluated
    config = EvaluateConfig(score_threshold=0.011, max_candidates=300, **asdict(settings))
    expected = match_detections(detect(detector, batches, config, CPU)).sorted_by_image_id()
    assert len(expected.score) > 6 and expected.matched.any()
    found = matcher.match(settings)
    for field in fields(expected):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(expected, field.name), strict=True
        )
    assert len(raw.image_ids) == 6


@pytest.fixture(scope="module")
def evaluated(
    scenes: dict[str, str],
) -> tuple[Detector, list[EvalBatch], RawPredictions, SettingsMatcher]:
    """Predict a set with an untrained detector, whose boxes are larger than its anchors."""
    torch.manual_seed(0)
    uri = scenes["test"]
    detector = build_detector("slim", "retinanet", len(load_manifest(uri).classes), 64).eval()
    tree = {
        "model": {"image_size": 64},
        "data": {"loader_workers": 0},
        "evaluate": {"score_threshold": 0.011, "max_candidates": 300},
    }
    config = Config.from_dict(tree)
    batches = list(build_eval_loader(uri, config, 0, 1))
    raw = predict_raw(detector, batches, config.evaluate, CPU)
    keys = [(iou, agnostic) for iou in (0.0, 0.3, 0.5, 0.8) for agnostic in (False, True)]
    return detector, batches, raw, SettingsMatcher(raw, keys)


Labelled = tuple[tuple[float, ...], int]


def raw_predictions(
    objects: list[Labelled], found: list[tuple[tuple[float, ...], float, int]]
) -> RawPredictions:
    """Return the predictions for one image of 100 x 100 px, after one without anything."""
    count = len(objects)
    return RawPredictions(
        image_ids=np.array(["0", "a"]),
        scale=np.ones((2, 4), np.float32),
        limit=np.full((2, 4), 100, np.float32),
        objects=np.array([0, count], np.int32),
        candidates=np.array([0, len(found)], np.int32),
        object_box=np.array([box for box, _ in objects]),
        object_label=np.array([label for _, label in objects], np.int32),
        object_crowd=np.zeros(count, np.bool_),
        object_difficult=np.zeros(count, np.bool_),
        object_area=np.full(count, 900.0),
        box=np.array([box for box, _, _ in found], np.float32),
        score=np.array([score for _, score, _ in found], np.float32),
        label=np.array([label for _, _, label in found], np.int32),
    )


LEFT, RIGHT = (0.0, 0.0, 40.0, 40.0), (10.0, 0.0, 50.0, 40.0)  # IoU 0.6
SHIFTED = (3.0, 0.0, 43.0, 40.0)  # IoU 0.86 with the left one
FAR = (60.0, 60.0, 90.0, 90.0)


def test_objects_that_overlap_need_a_higher_iou() -> None:
    raw = raw_predictions([(LEFT, 0), (RIGHT, 0)], [(LEFT, 0.9, 0), (RIGHT, 0.8, 0)])
    found = search_settings(raw, ["cat"], EvaluateConfig()).found
    assert found.before.settings == Settings(0.5, False, 100)
    assert found.best.settings == Settings(0.6, False, 100)
    assert found.best.metrics["ap"] == pytest.approx(1.0)
    assert found.before.metrics["ap"] == pytest.approx(51 / 101)
    # Two objects in one of two images: resamples without it show nothing.
    assert found.gain.value == pytest.approx(1 - 51 / 101) and found.gain.low == found.gain.value
    assert found.distinguishable and found.advised == found.best
    assert found.score_threshold == pytest.approx(0.8)
    assert found.score_thresholds == {"cat": pytest.approx(0.8)}


def test_second_class_on_one_object_needs_suppression_across_classes() -> None:
    raw = raw_predictions([(LEFT, 0), (FAR, 1)], [(LEFT, 0.9, 0), (SHIFTED, 0.8, 1), (FAR, 0.6, 1)])
    found = search_settings(raw, ["cat", "dog"], EvaluateConfig()).found
    assert found.best.settings.class_agnostic
    assert found.best.metrics["ap"] == pytest.approx(1.0)
    assert found.before.metrics["ap"] == pytest.approx(0.75)


def test_configured_settings_win_among_equals() -> None:
    raw = raw_predictions([(LEFT, 0)], [(LEFT, 0.9, 0)])
    given = EvaluateConfig(nms_iou=0.45, max_detections=7)
    found, tried, before, interval = search_settings(raw, ["cat"], given)
    assert found.best == found.before and found.best.settings == Settings(0.45, False, 7)
    assert len({item.settings for item in tried}) == len(tried) > 12
    assert found.advised == found.before and not found.distinguishable
    assert before.images == 2 and interval.low == pytest.approx(1.0)
