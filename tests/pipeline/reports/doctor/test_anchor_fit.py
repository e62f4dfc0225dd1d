"""Best anchors against the whole grid, and the search for anchors that fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from defusedxml import ElementTree
from hypothesis import given, settings
from hypothesis import strategies as st

from model.anchor_shapes import AnchorShapes
from model.anchors import make_anchors
from model.boxes import box_iou
from pipeline.reports.doctor.anchor_fit import best_ious, fit_anchors, missed_share

PAPER = AnchorShapes()


def random_boxes(count: int, size: int, low: float, high: float, seed: int = 0) -> np.ndarray:
    """Return boxes (N,4) inside the input whose sides are between ``low`` and ``high``."""
    draw = np.random.default_rng(seed)
    extent = np.exp(draw.uniform(np.log(low), np.log(high), (count, 2)))
    corner = draw.uniform(0, 1, (count, 2)) * (size - extent)
    return np.concatenate([corner, corner + extent], 1)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([64, 192, 512]),
    shapes=st.sampled_from(
        [PAPER, AnchorShapes(clamp=True), AnchorShapes(7.0, (1.0, 1.3, 2.1), (0.2, 1.0))]
    ),
)
def test_best_anchor_is_the_best_of_the_whole_grid(
    seed: int, size: int, shapes: AnchorShapes
) -> None:
    boxes = random_boxes(20, size, 1.0, size, seed)
    anchors = make_anchors(size, shapes)[0].double()
    expected = box_iou(torch.from_numpy(boxes), anchors).amax(1)
    np.testing.assert_allclose(best_ious(boxes, shapes, size), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_no_and_single_objects(count: int) -> None:
    boxes = random_boxes(count, 320, 40, 60)
    assert best_ious(boxes, PAPER, 320).shape == (count,)
    if count:
        assert 0 < fit_anchors(boxes, PAPER, 320).shapes.base < 100


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random_boxes(50, 320, 4, 200)
    whole = best_ious(boxes, PAPER, 320)
    monkeypatch.setattr("pipeline.reports.doctor.anchor_fit._CHUNK", 24 * 7)
    assert np.array_equal(best_ious(boxes, PAPER, 320), whole)


@pytest.mark.parametrize(
    "start", [PAPER, AnchorShapes(24.0, (1.0,), (1.0,)), AnchorShapes(8.0, (1.0, 1.5), (3.0, 4.0))]
)
def test_fitted_anchors_fit_more_objects(start: AnchorShapes) -> None:
    draw = np.random.default_rng(1)
    height = draw.uniform(14, 60, (300, 1))
    corner = draw.uniform(0, 200, (300, 2))
    boxes = np.concatenate([corner, corner + height * (0.4, 1.0)], 1)  # all of them tall
    fitted = fit_anchors(boxes, start, 320)
    assert fitted.missed < missed_share(boxes, start, 320) - 0.1
    assert fitted.missed == missed_share(boxes, fitted.shapes, 320)
    assert fitted == fit_anchors(boxes, start, 320)
    assert fitted == fit_anchors(boxes, fitted.shapes, 320)
    shapes = fitted.shapes
    assert (len(shapes.scales), len(shapes.ratios)) == (len(start.scales), len(start.ratios))
    assert shapes.scales[0] == 1.0
    assert min(shapes.ratios) < 0.6


@pytest.mark.parametrize("ratios", [7, 64])
def test_more_ratios_than_the_objects_have(ratios: int) -> None:
    boxes = np.tile([10.0, 10.0, 20.0, 20.0], (3, 1))
    start = AnchorShapes(24.0, (1.0,), tuple(1 + n / 100 for n in range(ratios)))
    fitted = fit_anchors(boxes, start, 64)
    assert len(fitted.shapes.ratios) == ratios
    assert fitted.missed == 0


def test_search_of_many_objects_takes_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random_boxes(400, 320, 10, 30)
    monkeypatch.setattr("pipeline.reports.doctor.anchor_fit.MAX_SEARCH_OBJECTS", 100)
    part = fit_anchors(boxes, PAPER, 320)
    assert part.shapes == fit_anchors(boxes[::4], PAPER, 320).shapes
    assert part.missed == missed_share(boxes, part.shapes, 320)


def test_shares_of_real_sets(shared: Path) -> None:
    """A third of the objects of a COCO sample have no anchor that fits; all blood cells have."""
    boxes = []
    for split in ("train", "val", "test"):
        tree = json.loads((shared / f"data/coco/annotations/instances_{split}.json").read_text())
        sides = {image["id"]: (image["width"], image["height"]) for image in tree["images"]}
        for item in tree["annotations"]:
            x, y, w, h = item["bbox"]
            if not item.get("iscrowd") and w > 0 and h > 0:
                scale = 320 / np.array(sides[item["image_id"]] * 2)
                boxes.append(np.array([x, y, x + w, y + h]) * scale)
    missed = missed_share(np.array(boxes), PAPER, 320)
    assert 0.33 < missed < 0.39
    assert fit_anchors(np.array(boxes), PAPER, 320).missed < missed - 0.05
    cells = []
    for file in sorted((shared / "data/bccd/Annotations").glob("*.xml"))[:60]:
        root = ElementTree.parse(file)
        width, height = (float(root.findtext(f"size/{side}")) for side in ("width", "height"))
        for item in root.iter("bndbox"):
            x1, y1, x2, y2 = (
                float(item.findtext(name) or 0) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            if x2 > x1 and y2 > y1:
                cells.append(np.array([x1 - 1, y1 - 1, x2, y2]) * 320 / ([width, height] * 2))
    assert missed_share(np.array(cells), PAPER, 320) < 0.005
