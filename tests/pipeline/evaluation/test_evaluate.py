"""Test evaluation over ranks: the same metrics for any number of them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model import build_detector
from model.boxes import box_iou
from pipeline.config import Config
from pipeline.data import build_eval_loader, load_manifest
from pipeline.distributed.world import World
from pipeline.evaluation.evaluate import Timed, box_scale, evaluate, infer


def figures(uri: str, world: World) -> dict[str, float] | None:
    torch.manual_seed(0)
    classes = load_manifest(uri).classes
    detector = build_detector("slim", "retinanet", len(classes), 64).eval()
    tree = {"model": {"image_size": 64}, "evaluate": {"batch_size": 2, "score_threshold": 0.0}}
    config = Config.from_dict({**tree, "data": {"loader_workers": 0}})
    batches = build_eval_loader(uri, config, world.rank, world.size)
    found = evaluate(detector, batches, classes, config.evaluate, world)
    return None if found is None else {**found.result.metrics, "images": found.table.images}


def _rank(rank: int, uri: str, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 4)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=4)
    found = figures(uri, World(rank, 4))
    assert (found is None) == (rank > 0)
    if found is not None:
        Path(folder, "figures.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_four_ranks_give_the_metrics_of_one(scenes: dict[str, str], tmp_path: Path) -> None:
    mp.spawn(_rank, args=(scenes["test"], str(tmp_path)), nprocs=4)
    alone = figures(scenes["test"], World())
    assert json.loads((tmp_path / "figures.json").read_text()) == alone
    assert alone is not None
    assert alone["images"] == 6
    assert alone["ar_100"] > 0  # an untrained detector still finds something


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_class_agnostic_nms_suppresses_across_classes(class_agnostic: bool) -> None:
    torch.manual_seed(0)
    detector = build_detector("slim", "retinanet", 3, 64).eval()
    config = Config.from_dict(
        {"evaluate": {"class_agnostic": class_agnostic, "score_threshold": 0.0}}
    )
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = infer(detector, images, config.evaluate)
    overlaps = box_iou(found.boxes, found.boxes).triu(1)
    real = found.labels >= 0
    overlaps = overlaps * (real[:, :, None] & real[:, None, :])
    same = found.labels[:, :, None] == found.labels[:, None, :]
    limit = config.evaluate.nms_iou
    assert overlaps[same].max() <= limit
    assert (overlaps[~same].max() <= limit) == class_agnostic


def test_boxes_are_scaled_to_the_original_size() -> None:
    scale = box_scale(torch.tensor([[640, 480], [100, 300]]), 320)
    assert scale.tolist() == [[2.0, 1.5, 2.0, 1.5], [100 / 320, 300 / 320, 100 / 320, 300 / 320]]


def test_time_is_divided_between_prediction_and_matching() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    timed = Timed(slow())
    for _ in timed:
        time.sleep(0.005)
    assert timed.inside >= 0.06
    assert 0.015 <= timed.outside() < timed.inside + 0.5
