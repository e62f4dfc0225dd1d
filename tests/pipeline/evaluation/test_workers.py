"""Test that Ray workers give the figures of a single process."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from model import build_detector
from pipeline.config import Config, DetectorSpec
from pipeline.data import load_manifest
from pipeline.data.loading.bad_samples import BadSamples
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.evaluation.model_evaluation import evaluate_model, evaluation_config
from pipeline.evaluation.workers import evaluate_on_ray, evaluate_part, split
from pipeline.metrics import MatchTable
from pipeline.registry import LoadedDetector
from pipeline.registry.description import PredictionDefaults

CONFIG = Config.from_dict({"data": {"loader_workers": 0}})


@pytest.fixture
def loaded(scenes: dict[str, str]) -> LoadedDetector:
    torch.manual_seed(0)
    classes = load_manifest(scenes["train"]).classes
    detector = build_detector("slim", "retinanet", len(classes), 64).eval()
    evaluate = {"batch_size": 4, "score_threshold": 0.0}
    spec = DetectorSpec(**detector.spec)
    defaults = PredictionDefaults(score_threshold=0.3, nms_iou=0.5, max_detections=100)
    state = detector.state_dict()
    return LoadedDetector("model", spec, classes, state, evaluate, "stretch", defaults)


def assert_same(table: MatchTable, other: MatchTable) -> None:
    for field in fields(MatchTable):
        left, right = getattr(table, field.name), getattr(other, field.name)
        assert np.array_equal(left, right), field.name


@pytest.mark.parametrize("samples", [1, 3, 4, 5, 20, 97])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parts_are_whole_batches_and_cover_all_samples(samples: int, workers: int) -> None:
    parts = split(samples, 4, workers)
    assert [index for part in parts for index in part] == list(range(samples))
    assert all(part.start % 4 == 0 for part in parts)
    assert all(len(part) % 4 == 0 for part in parts[:-1])


def test_parts_have_the_matches_of_the_whole(loaded: LoadedDetector, scenes) -> None:
    whole = evaluate_model(loaded, scenes["train"], config=CONFIG)
    settings = evaluation_config(loaded, CONFIG)
    results = [
        evaluate_part(loaded, scenes["train"], settings, part) for part in split(20, 4, workers=1)
    ]
    assert len(results) == 5
    assert [result.samples for result in results] == [4] * 5
    table = MatchTable.concatenate([result.table for result in results]).sorted_by_image_id()
    assert whole is not None
    assert len(table.label) > 0
    assert_same(table, whole.evaluation.table)


def test_part_reports_what_it_could_not_read() -> None:
    bad = BadSamples(0.0)
    bad.count(3, ["shard 0: damaged"])
    bad.count(4, [])
    assert bad.pending() == (7, ["shard 0: damaged"])
    bad.check(World())
    assert bad.pending() == (0, [])


@pytest.mark.integration
def test_ray_workers_give_the_figures_of_one_process(
    loaded: LoadedDetector, scenes, tmp_path: Path, monkeypatch
) -> None:
    whole = evaluate_model(loaded, scenes["train"], config=CONFIG)
    monkeypatch.chdir(Path(scenes["train"]).parent)  # a relative path is that of this process
    found = evaluate_on_ray(loaded, "train", 2, CONFIG)
    assert whole is not None
    assert_same(found.evaluation.table, whole.evaluation.table)
    assert found.evaluation.result.metrics == whole.evaluation.result.metrics
    with pytest.raises(UserError, match="classes"):
        evaluate_on_ray(loaded._replace(classes=["other"]), "train", 2, CONFIG)
