"""Test that pixels and boxes move together."""

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.config import DataConfig
from pipeline.data.keyed_rng import generator
from pipeline.data.transforms.augment import (
    AugmentParams,
    decode_size,
    decoded_scale,
    draw_params,
    fit_params,
    warp,
)
from pipeline.data.transforms.boxes import box_map, move_boxes
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.data.transforms.resize import FILL_COLOUR, Warp, to_input, view_matrix, visible_size

SIZE = 320
EVERYTHING = DataConfig(flip=0.5, flip_vertical=0.5, crop=1.0, zoom_out=0.5, photometric=0.0)
NOTHING = DataConfig(flip=0.0)


def params_of(config: DataConfig, key: int, width: int, height: int, boxes=()) -> AugmentParams:
    rng = generator("augment", 0, 0, key)
    return draw_params(rng, config, width, height, lambda: np.array(boxes, float).reshape(-1, 4))


def warped(
    image: np.ndarray, params: AugmentParams, width: int, height: int, size: int
) -> np.ndarray:
    """Return the input (size,size,3) of an image from a source of width x height."""
    out = np.full((size, size, 3), 77, np.uint8)
    warp(image, params, (width, height), out)
    return out


def moved_boxes(boxes: np.ndarray, params: AugmentParams, size: int, centre_inside: bool = True):
    """Return the boxes that remain, and the mask of them."""
    moved, keep = move_boxes(boxes, np.array([box_map(params, 0, 0, size, size)]).T, centre_inside)
    return moved[keep], keep


def find_blob(image: np.ndarray, channel: int) -> tuple[float, float]:
    """Return the centre of mass (x, y) of one colour, from the corner of the first pixel."""
    weight = (image[..., channel] > 135).astype(float)  # above the fill colour and half a mark
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()


@pytest.mark.parametrize("shape", [(640, 480), (500, 375), (333, 517), (1601, 1203)])
@pytest.mark.parametrize("key", range(12))
def test_painted_marks_are_found_within_half_a_pixel(shape, key):
    width, height = shape
    params = params_of(EVERYTHING, key, width, height)
    x1, y1, x2, y2 = params.view
    # A box in the middle of the visible part of the image, with marks at two of its corners.
    left, top = max(x1, 0), max(y1, 0)
    span = min(x2, width) - left, min(y2, height) - top
    box = [left + 0.3 * span[0], top + 0.3 * span[1], left + 0.7 * span[0], top + 0.7 * span[1]]
    box = [round(v) for v in box]
    radius = max(3, round(min(span) / 25))
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y) in enumerate([(box[0], box[1]), (box[2], box[3])]):
        image[y - radius : y + radius, x - radius : x + radius, 2 * channel] = 255
    data = simplejpeg.encode_jpeg(image, quality=98, colorsubsampling="444")

    decoded = decode_image(data, min_size=decode_size(params, (width, height), (SIZE, SIZE)))
    out = warped(decoded, params, width, height, SIZE)
    (moved,), _ = moved_boxes(np.array([box], float), params, SIZE)

    (ax, ay), (bx, by) = find_blob(out, 0), find_blob(out, 2)
    if params.flip:
        (ax, bx) = (bx, ax)
    if params.flip_vertical:
        (ay, by) = (by, ay)
    assert [ax, ay, bx, by] == pytest.approx(moved.tolist(), abs=0.5)


@pytest.mark.parametrize("shape", [(640, 480), (375, 500), (1601, 1203)])
@pytest.mark.parametrize("key", range(8))
def test_painted_marks_are_found_in_letterboxed_tiles(shape, key):
    width, height = shape
    config = DataConfig(flip=0.5, flip_vertical=0.5, fit="letterbox")
    left, top, w, h = 37, 90, 210, 170  # a tile of a mosaic
    params = fit_params(params_of(config, key, width, height), w, h, "letterbox")
    side = round(width / 16)
    box = [3 * side, 2 * side, 9 * side, 7 * side]
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y) in enumerate([(box[0], box[1]), (box[2], box[3])]):
        image[y - side : y + side, x - side : x + side, 2 * channel] = 255
    data = simplejpeg.encode_jpeg(image, quality=98, colorsubsampling="444")
    decoded = decode_image(data, min_size=decode_size(params, shape, (w, h)))
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    warp(decoded, params, shape, out[top : top + h, left : left + w])
    ((x1, y1, x2, y2),), keep = move_boxes(
        np.array([box], float), np.array([box_map(params, left, top, w, h)]).T
    )
    (ax, ay), (bx, by) = find_blob(out, 0), find_blob(out, 2)
    (ax, bx), (ay, by) = sorted((ax, bx)), sorted((ay, by))
    assert keep.all() and [ax, ay, bx, by] == pytest.approx([x1, y1, x2, y2], abs=0.5)
    # The aspect ratio is kept, and nothing outside the tile is written.
    assert (x2 - x1) / (y2 - y1) == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=1e-5)
    outside = out.copy()
    outside[top : top + h, left : left + w] = 0
    assert not outside.any() and out[top : top + h, left : left + w].any()


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (200, 90)])
def test_letterboxed_training_image_equals_the_evaluation_input(shape):
    height, width = shape
    image = generator("augment", 1, 1, 3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    params = fit_params(params_of(NOTHING, 0, width, height), SIZE, SIZE, "letterbox")
    expected = to_input(image, SIZE, "letterbox")
    assert np.array_equal(warped(image, params, width, height, SIZE).transpose(2, 0, 1), expected)
    (a, _, _), (_, b, _) = view_matrix(Warp(params.view, 1.0), SIZE, SIZE)
    assert (1 / a, 1 / b) == pytest.approx(
        [side / SIZE for side in visible_size(width, height, "letterbox")]
    )
    padding = expected[:, -1, -1] if width != height else None
    assert padding.tolist() == list(FILL_COLOUR)


def test_large_sources_are_decoded_at_a_fraction():
    width, height = 1601, 1203
    params = params_of(NOTHING, 0, width, height)
    min_size = decode_size(params, (width, height), (SIZE, SIZE))
    image = np.zeros((height, width, 3), np.uint8)
    decoded = decode_image(simplejpeg.encode_jpeg(image), min_size=min_size)
    assert decoded.shape[:2] == (452, 601) and decoded_scale(decoded, width, height) == 3 / 8


def test_image_of_another_size_than_its_json_is_an_error():
    with pytest.raises(ImageError, match="is not 640x480 as its JSON says"):
        decoded_scale(np.zeros((480, 600, 3), np.uint8), 640, 480)


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_training_image_without_crop_equals_the_evaluation_input(flip, upside_down):
    image = cv2.GaussianBlur(
        generator("augment", 1, 1, 1).integers(0, 256, (480, 640, 3), dtype=np.uint8), (7, 7), 0
    )
    params = AugmentParams((0.0, 0.0, 640.0, 480.0), flip, None, upside_down)
    out = warped(image, params, 640, 480, SIZE).transpose(2, 0, 1)
    out = out[:, :, ::-1] if flip else out
    assert np.array_equal(out[:, ::-1] if upside_down else out, to_input(image, SIZE))


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_affine_warp_equals_plain_stretch(flip, upside_down):
    image = cv2.GaussianBlur(
        generator("augment", 1, 1, 2).integers(0, 256, (480, 640, 3), dtype=np.uint8), (7, 7), 0
    )
    whole, less = (0, 0, 640, 480), (0, 0, 640 - 1e-6, 480)
    plain, hair = (
        warped(image, AugmentParams(view, flip, None, upside_down), 640, 480, SIZE).astype(int)
        for view in (whole, less)
    )
    assert abs(plain - hair).max() <= 3


def test_matrix_maps_the_view_to_the_input():
    matrix = view_matrix(Warp((10, 20, 110, 70), 1.0), 100, 100)
    assert (matrix @ [10, 20, 1]).tolist() == [0, 0] and (matrix @ [110, 70, 1]).tolist() == [
        100,
        100,
    ]
    matrix = view_matrix(Warp((10, 20, 110, 70), 1.0, flip=True), 100, 100)
    assert (matrix @ [110, 20, 1]).tolist() == [0, 0] and (matrix @ [10, 70, 1]).tolist() == [
        100,
        100,
    ]


def test_invisible_boxes_are_dropped_and_the_others_clipped():
    params = AugmentParams((100, 100, 200, 200), False, None)
    boxes = np.array(
        [
            [0, 0, 50, 50],  # outside
            [80, 110, 150, 150],  # partly outside, centre inside
            [0, 110, 110, 150],  # centre outside
            [150, 150, 151, 151],  # one pixel
        ],
        float,
    )
    moved, keep = moved_boxes(boxes, params, 200)
    assert keep.tolist() == [False, True, False, True]
    assert moved.tolist() == [[0, 20, 100, 100], [100, 100, 102, 102]]
    crowd, keep = moved_boxes(boxes, params, 200, centre_inside=False)
    assert keep.tolist() == [False, True, True, True]
    assert crowd[1].tolist() == [0, 20, 20, 100]


def test_image_without_boxes():
    moved, keep = moved_boxes(np.zeros((0, 4)), params_of(EVERYTHING, 0, 64, 64), SIZE)
    assert moved.shape == (0, 4) and moved.dtype == np.float32 and keep.shape == (0,)


def test_no_box_is_lost_without_a_crop():
    config = DataConfig(zoom_out=1.0, flip=0.5)
    boxes = np.array([[0, 0, 1, 1], [639, 479, 640, 480], [0, 0, 640, 480]], float)
    for key in range(50):
        moved, keep = moved_boxes(boxes, params_of(config, key, 640, 480, boxes), SIZE)
        assert keep.all() and (moved[:, 2:] > moved[:, :2]).all()


def test_crops_stay_in_the_image_and_keep_an_object():
    boxes = np.array([[20, 20, 60, 70], [300, 200, 420, 330]], float)
    views = []
    for key in range(100):
        params = params_of(DataConfig(crop=1.0), key, 640, 480, boxes)
        x1, y1, x2, y2 = params.view
        assert 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 480
        assert x2 - x1 >= 0.3 * 640 - 1e-9 and y2 - y1 >= 0.3 * 480 - 1e-9
        assert len(moved_boxes(boxes, params, SIZE)[0]) >= 1
        views.append(params.view)
    assert len(set(views)) > 30  # small objects cannot reach every IoU


def test_zoom_out_contains_the_whole_image_on_the_fill_colour():
    image = np.zeros((60, 80, 3), np.uint8)
    for key in range(20):
        params = params_of(DataConfig(zoom_out=1.0, zoom_out_max=3.0), key, 80, 60)
        x1, y1, x2, y2 = params.view
        assert x1 <= 0 and y1 <= 0 and x2 >= 80 and y2 >= 60
        assert 1 <= (x2 - x1) / 80 <= 3 and (x2 - x1) / 80 == pytest.approx((y2 - y1) / 60)
        share = (warped(image, params, 80, 60, SIZE) == FILL_COLOUR).all(2).mean()
        assert share == pytest.approx(1 - 4800 / ((x2 - x1) * (y2 - y1)), abs=0.03)


def test_colour_matrix_keeps_grey_grey():
    grey = np.full((4, 4, 3), 128, np.uint8)
    changed = 0
    for key in range(60):
        params = params_of(DataConfig(photometric=1.0), key, 4, 4)
        assert params.colour.shape == (3, 4)
        out = warped(grey, params, 4, 4, 64)
        assert np.ptp(out[0, 0].astype(int)) <= 1  # saturation and hue leave grey grey
        assert abs(out[0, 0].astype(int) - 128).max() <= 33  # contrast pivots on it
        changed += not np.allclose(params.colour, np.eye(3, 4), atol=1e-3)
    assert changed > 45


def test_probabilities_of_zero_and_one_are_exact():
    assert not any(params_of(NOTHING, k, 9, 9).flip for k in range(50))
    assert not any(params_of(NOTHING, k, 9, 9).flip_vertical for k in range(50))
    assert all(params_of(DataConfig(flip_vertical=1.0), k, 9, 9).flip_vertical for k in range(50))
    assert all(params_of(DataConfig(flip=1.0), k, 9, 9).flip for k in range(50))
    flips = [params_of(DataConfig(flip=0.5), k, 9, 9).flip for k in range(200)]
    assert 70 < sum(flips) < 130
    assert {params_of(NOTHING, k, 9, 9).view for k in range(50)} == {(0.0, 0.0, 9.0, 9.0)}
