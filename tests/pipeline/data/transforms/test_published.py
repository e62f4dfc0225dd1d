"""Augmentation as the paper's authors have it: bounds, order, and that boxes move with pixels."""

import math

import cv2
import numpy as np
import pytest

from pipeline.config import DataConfig
from pipeline.data.keyed_rng import generator
from pipeline.data.transforms.augment import (
    AugmentParams,
    centres_inside,
    decode_size,
    hue_rotation,
    iou,
    warp,
)
from pipeline.data.transforms.boxes import box_map, move_boxes
from pipeline.data.transforms.published import INTERPOLATIONS, draw_published
from pipeline.data.transforms.resize import FILL_COLOUR

SIZE = 320
PAPER = DataConfig(
    augment_variant="published", crop=1.0, zoom_out=0.6, zoom_out_max=4.0, photometric=1.0
)
BOXES = np.array([[200, 150, 420, 360]], float)


def params_of(
    key: int, boxes: np.ndarray = BOXES, width: int = 640, height: int = 480, **changes: float
) -> AugmentParams:
    config = PAPER.model_copy(update=changes)
    return draw_published(generator("augment", 0, 0, key), config, width, height, lambda: boxes)


def moved(boxes: np.ndarray, params: AugmentParams) -> tuple[np.ndarray, np.ndarray]:
    return move_boxes(boxes, np.array([box_map(params, 0, 0, SIZE, SIZE)]).T)


def test_draws_depend_on_the_generator_alone() -> None:
    for key in range(20):
        one, other = params_of(key), params_of(key)
        assert np.array_equal(one.colour, other.colour)
        assert one._replace(colour=None) == other._replace(colour=None)


@pytest.mark.parametrize("key", range(30))
def test_painted_box_is_found_where_the_box_is(key: int) -> None:
    """Also beside a canvas around a crop, whose rest has the fill colour."""
    params = params_of(key, photometric=0.0)
    image = np.full((480, 640, 3), 60, np.uint8)
    x1, y1, x2, y2 = BOXES[0].astype(int)
    image[y1:y2, x1:x2] = 255
    out = np.full((SIZE, SIZE, 3), 77, np.uint8)
    warp(image, params, (640, 480), out)
    (box,), keep = moved(BOXES, params)
    assert keep.all()
    rows, columns = (out.astype(int).min(2) > 180).nonzero()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found == pytest.approx(box.tolist(), abs=1.5)


def test_canvas_surrounds_the_crop_and_has_the_fill_colour() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    seen = 0
    for key in range(60):
        params = params_of(key, zoom_out=1.0)
        if params.visible in (None, (0.0, 0.0, 640.0, 480.0)):
            continue
        out = np.full((SIZE, SIZE, 3), 77, np.uint8)
        warp(image, params, (640, 480), out)
        width, height = (params.visible[axis + 2] - params.visible[axis] for axis in (0, 1))
        span = [params.view[axis + 2] - params.view[axis] for axis in (0, 1)]
        share = (out == FILL_COLOUR).all(2).mean()
        assert share == pytest.approx(1 - width * height / math.prod(span), abs=0.02)
        seen += 1
    assert seen > 30


def test_crops_keep_the_bound_of_a_mode_for_all_objects() -> None:
    boxes = np.array([[40, 40, 600, 440], [300, 200, 340, 240]], float)
    views = [params_of(key, boxes, zoom_out=0.0).view for key in range(200)]
    whole = (0.0, 0.0, 640.0, 480.0)
    assert np.mean([view == whole for view in views]) > 1 / 7 - 0.08
    crops = np.array([view for view in views if view != whole])
    assert centres_inside(crops, boxes).any(1).all()
    sides = (crops[:, 2:] - crops[:, :2]) / np.array([640, 480])
    assert (np.abs(np.log2(sides[:, 0] / sides[:, 1])) <= 1 + 1e-9).all()
    assert (sides <= 1 + 1e-9).all() and (sides.prod(1) >= 0.3**2 - 1e-9).all()
    # The small object can overlap no crop by .1 or more: only the mode without a bound is left.
    assert iou(crops, boxes)[:, 1].max() < 0.1
    large = np.array([[10, 10, 630, 470]], float)
    views = [params_of(key, large, zoom_out=0.0).view for key in range(200)]
    overlaps = [iou(np.array([view]), large).min() for view in views if view != whole]
    assert np.mean(np.array(overlaps) > 0.5) > 0.2  # the modes .5, .7 and .9 of the six


def test_zoom_out_changes_scale_and_aspect_ratio() -> None:
    params = [params_of(key, crop=0.0) for key in range(300)]
    sides = np.array(
        [[(p.view[2] - p.view[0]) / 640, (p.view[3] - p.view[1]) / 480] for p in params]
    )
    zoomed = sides.prod(1) > 1
    assert zoomed.mean() == pytest.approx(0.6, abs=0.1)
    assert (sides >= 1 - 1e-9).all() and (sides.prod(1) <= 16 + 1e-9).all()
    aspect = sides[zoomed, 0] / sides[zoomed, 1]
    assert aspect.min() < 0.7 and aspect.max() > 1.4
    for p in params:
        assert p.view[0] <= 0 and p.view[1] <= 0 and p.view[2] >= 640 and p.view[3] >= 480


def test_small_objects_are_dropped_unless_all_would_be() -> None:
    small, large = [100, 100, 106, 200], [200, 150, 420, 360]
    both, dropped = np.array([small, large], float), 0
    for key in range(60):
        params = params_of(key, both)
        boxes, keep = moved(both, params)
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
        assert keep.any() and (sides[keep] >= 0.01 * SIZE - 1e-4).all()
        dropped += not keep[0]
    assert dropped > 10
    alone = np.array([[100, 100, 101, 200]], float)
    for key in range(20):
        params = params_of(key, alone)
        assert params == AugmentParams((0.0, 0.0, 640.0, 480.0), False)
        assert moved(alone, params)[1].all()


def test_all_interpolations_are_drawn_and_differ() -> None:
    drawn = [params_of(key).interpolation for key in range(60)]
    assert set(drawn) == set(INTERPOLATIONS)
    image = generator("augment", 1, 1, 1).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    plain = AugmentParams((20.0, 30.0, 220.0, 190.0), False)
    outputs = []
    for interpolation in (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4):
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        warp(image, plain._replace(interpolation=interpolation), (260, 200), out)
        outputs.append(out)
    assert len({out.tobytes() for out in outputs}) == 4


def test_contrast_is_about_zero_and_hue_reaches_36_degrees() -> None:
    black, turns = np.zeros(3), []
    for key in range(200):
        matrix = params_of(key).colour
        assert matrix is not None
        offset = matrix @ [*black, 1]
        gain = float((matrix[:, :3] @ np.ones(3)).mean())  # grey stays grey
        assert np.ptp(matrix[:, :3] @ np.ones(3)) < 1e-5 and np.ptp(offset) < 1e-4
        assert abs(offset[0]) <= 32 * gain + 1e-3 and 0.5 <= gain <= 1.5
        turned = hue_rotation(math.radians(36)) @ [1, 0, 0]
        turns.append(float(np.arctan2(*chroma(matrix[:, :3] @ [1, 0, 0]))))
        limit = float(np.arctan2(*chroma(turned)))
    reached = np.abs(np.array(turns) - np.median(turns)).max()
    assert 0.9 * abs(limit - np.median(turns)) < reached <= abs(limit - np.median(turns)) + 0.05


def chroma(colour: np.ndarray) -> tuple[float, float]:
    """Return the two coordinates of a colour across the grey diagonal."""
    red, green, blue = colour
    return (green - blue) / math.sqrt(2), (2 * red - green - blue) / math.sqrt(6)


def test_probabilities_of_zero_are_exact_and_images_without_objects_are_not_cropped() -> None:
    nothing = {"crop": 0.0, "zoom_out": 0.0, "photometric": 0.0, "flip": 0.0}
    for key in range(30):
        params = params_of(key, **nothing)
        assert params.view == (0.0, 0.0, 640.0, 480.0) and params.visible is None
        assert params.colour is None and not params.flip and not params.flip_vertical
        empty = params_of(key, np.zeros((0, 4)), zoom_out=0.0)
        assert empty.view == (0.0, 0.0, 640.0, 480.0) and empty.colour is not None
    assert decode_size(params, (640, 480), (SIZE, SIZE)) == (320, 320)
