"""Test rotation, scale and shear: pixels and boxes move together, in one warp."""

import math

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import DataConfig
from pipeline.data.keyed_rng import generator
from pipeline.data.transforms.augment import (
    AugmentParams,
    decode_size,
    draw_affine,
    draw_params,
    fit_params,
    warp,
)
from pipeline.data.transforms.boxes import affine_box_map, box_map, move_affine, move_boxes
from pipeline.data.transforms.decode import decode_image
from pipeline.data.transforms.published import draw_published
from pipeline.data.transforms.resize import FILL_COLOUR

SIZE = 320
MOVES = {"rotate": 40.0, "scale": 0.4, "shear": 10.0}
WHOLE = (0.0, 0.0, 640.0, 480.0)
IDENTITY = np.eye(2, 3)
DRAWS = {"ssd": draw_params, "published": draw_published}


def drawn(key: int, boxes=(), source=(640, 480), **fields) -> AugmentParams:
    """Return the augmentation of one image with this configuration."""
    config = DataConfig(**fields)
    objects = np.array(boxes, float).reshape(-1, 4)
    rng = generator("augment", 0, 0, key)
    params = DRAWS[config.augment_variant](rng, config, *source, lambda: objects)
    return fit_params(params, SIZE, SIZE, config.fit)


def moved(boxes, params: AugmentParams, rect=(0, 0, SIZE, SIZE), centre_inside=True):
    maps = np.array([affine_box_map(params, *rect)]).T  # (15,1)
    return move_affine(np.array(boxes, float).reshape(-1, 4), maps, centre_inside)


def warped(image: np.ndarray, params: AugmentParams, size: int = SIZE) -> np.ndarray:
    out = np.full((size, size, 3), 77, np.uint8)
    warp(image, params, (image.shape[1], image.shape[0]), out)
    return out


def noise(width: int, height: int) -> np.ndarray:
    rng = generator("augment", 2, 2, 2)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def blob(image: np.ndarray) -> tuple[float, float]:
    """Return the centre of mass (x, y) of a mark, from the corner of the first pixel."""
    # Above the fill colour, also where Lanczos' interpolation exceeds it.
    weight = np.clip(image[..., 0].astype(float) - 160, 0, None)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("source", [(640, 480), (375, 500), (901, 677)])
@pytest.mark.parametrize("variant", ["ssd", "published"])
@pytest.mark.parametrize("key", range(3))
def test_a_box_is_the_bounds_of_its_painted_corners(fit, source, variant, key):
    width, height = source
    fields = {**MOVES, "flip": 0.5, "flip_vertical": 0.5, "fit": fit, "augment_variant": variant}
    zoom = {"zoom_out": 1.0, "zoom_out_max": 1.5} if variant == "ssd" else {}
    params = drawn(key, source=source, **fields, **zoom)
    x1, y1, x2, y2 = box = [
        round(share * side)
        for share, side in zip((0.4, 0.35, 0.62, 0.6), (width, height) * 2, strict=True)
    ]
    radius = round(min(source) / 30)
    rect = left, top, w, h = 30, 20, 250, 200  # a tile of a mosaic
    found = []
    for x, y in ((x1, y1), (x2, y1), (x1, y2), (x2, y2)):
        image = np.zeros((height, width, 3), np.uint8)
        image[y - radius : y + radius, x - radius : x + radius] = 255
        data = simplejpeg.encode_jpeg(image, quality=98, colorsubsampling="444")
        decoded = decode_image(data, min_size=decode_size(params, source, (w, h)))
        out = np.zeros((SIZE, SIZE, 3), np.uint8)
        warp(decoded, params, source, out[top : top + h, left : left + w])
        found.append(blob(out))
        out[top : top + h, left : left + w] = 0
        assert not out.any()  # nothing outside the tile is written
    (corners,), keep = moved([box], params, rect)
    assert keep.all() and params.affine is not None
    low, high = np.min(found, 0), np.max(found, 0)
    assert corners.tolist() == pytest.approx([*low, *high], abs=0.6)


def test_without_rotation_the_pixels_are_those_of_the_view_alone():
    image = noise(640, 480)
    for view in ((-50.0, -20.0, 700.0, 500.0), (100.0, 50.0, 600.0, 400.0)):
        for flip in (False, True):
            plain = AugmentParams(view, flip)
            assert np.array_equal(
                warped(image, plain), warped(image, plain._replace(affine=IDENTITY))
            )


def test_a_quarter_turn_is_exact():
    image = noise(SIZE, SIZE)
    matrix = np.array(((0.0, -1.0, SIZE), (1.0, 0.0, 0.0)))
    params = AugmentParams((0.0, 0.0, SIZE, SIZE), False, affine=matrix)
    assert np.array_equal(warped(image, params), np.rot90(image, -1))
    boxes, keep = moved([[0, 10, 20, 50]], params)
    assert keep.all() and boxes.tolist() == [[SIZE - 50, 0, SIZE - 10, 20]]


@pytest.mark.parametrize("seed", range(20))
def test_without_rotation_boxes_are_those_of_the_view_alone(seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((30, 2, 2)) * 700 - 30, axis=1)
    boxes = corners.reshape(30, 4)
    visible = (50.0, 60.0, 500.0, 400.0) if seed % 2 else None
    flips = bool(seed % 3), bool(seed % 5)
    params = AugmentParams((-40.3, 20.7, 610.1, 455.5), flips[0], None, flips[1], visible)
    params = params._replace(min_side=0.01 * (seed % 2))
    one, keep = move_boxes(boxes, np.array([box_map(params, 0, 0, 300, 200)]).T, seed % 4 > 0)
    other, same = moved(boxes, params, (0, 0, 300, 200), seed % 4 > 0)
    assert np.array_equal(keep, same) and keep.any() and not keep.all()
    assert np.array_equal(one[keep], other[keep])


def test_objects_whose_centre_leaves_the_input_are_dropped_but_not_crowd():
    quarter = np.array(((0.0, -1.0, 480.0), (1.0, 0.0, 0.0)))  # the top left becomes the top right
    params = AugmentParams((0.0, 0.0, 480.0, 480.0), False, affine=quarter)
    boxes = [[100, 100, 200, 140], [450, 100, 600, 200], [600, 300, 640, 400]]
    found, keep = moved(boxes, params)
    assert keep.tolist() == [True, False, False]
    crowd, keep = moved(boxes, params, centre_inside=False)
    assert keep.tolist() == [True, True, False]
    scale = SIZE / 480
    assert crowd[1].tolist() == pytest.approx([280 * scale, 450 * scale, 380 * scale, SIZE])
    assert found[0].tolist() == pytest.approx([340 * scale, 100 * scale, 380 * scale, 200 * scale])


def test_what_a_published_crop_hides_is_filled_and_in_no_box():
    angle = math.radians(30)
    cos, sin = math.cos(angle), math.sin(angle)
    affine = np.array(((cos, -sin, 100.0), (sin, cos, -80.0)))
    visible = (160.0, 120.0, 480.0, 360.0)
    params = AugmentParams(WHOLE, True, visible=visible, affine=affine)
    image = np.full((480, 640, 3), 255, np.uint8)
    out = warped(image, params)
    shown = (out != FILL_COLOUR).any(2)
    area = 320 * 240 * (SIZE / 640) * (SIZE / 480)
    assert shown.sum() == pytest.approx(area, rel=0.02)
    # A box that extends beyond the crop becomes the bounds of what the crop shows of it.
    (box,), keep = moved([[0, 0, 640, 480]], params)
    y, x = np.nonzero(shown)
    assert keep.all()
    assert box.tolist() == pytest.approx([x.min(), y.min(), x.max() + 1, y.max() + 1], abs=2.5)
    assert not moved([[10, 10, 200, 200]], params)[1].any()  # its centre is hidden


def test_the_published_variant_keeps_one_object():
    boxes = [[600, 440, 640, 480]]
    affine = []
    for key in range(60):
        params = drawn(key, boxes, rotate=40.0, scale=0.6, augment_variant="published")
        assert moved(boxes, params)[1].any()
        affine.append(params.affine is not None)
    assert any(affine) and not all(affine)  # some turns would have lost the object


@pytest.mark.parametrize("variant", ["ssd", "published"])
def test_the_other_draws_do_not_depend_on_rotation_scale_and_shear(variant):
    fields = {
        "augment_variant": variant,
        "crop": 0.5,
        "zoom_out": 0.5,
        "photometric": 0.5,
        "flip": 0.5,
    }
    boxes = [[200, 100, 440, 380]]
    turns = 0
    for key in range(10):
        plain, turned = drawn(key, boxes, **fields), drawn(key, boxes, **fields, **MOVES)
        assert plain.affine is None
        assert turned[:2] == plain[:2] and turned[3:-1] == plain[3:-1]
        assert np.array_equal(turned.colour, plain.colour)
        turns += turned.affine is not None
    assert turns > 5


def test_draws_stay_in_their_bounds_and_options_do_not_change_each_other():
    angles, factors = [], []
    for key in range(100):
        a, b, c, d = drawn(key, rotate=30.0).affine[:, :2].ravel()
        assert a == pytest.approx(d) and b == pytest.approx(-c)
        assert math.hypot(a, c) == pytest.approx(1)
        angles.append(math.degrees(math.atan2(c, a)))
        scaled = drawn(key, scale=0.5).affine[:, :2]
        assert scaled == pytest.approx(np.eye(2) * scaled[0, 0])
        factors.append(scaled[0, 0])
        both = drawn(key, rotate=30.0, scale=0.5).affine[:, :2]
        assert both == pytest.approx(scaled[0, 0] * np.array(((a, b), (c, d))))
        sheared = drawn(key, shear=10.0).affine[:, :2]
        assert sheared.diagonal().tolist() == [1, 1]
        assert abs(sheared - np.eye(2)).max() <= math.tan(math.radians(10))
    assert -30 <= min(angles) < -25 and 25 < max(angles) <= 30
    assert 0.5 <= min(factors) < 0.55 and 1.45 < max(factors) <= 1.5


@given(key=st.integers(0, 10**6))
def test_the_centre_of_the_view_stays_where_it_is(key):
    view = (30.0, -20.0, 400.0, 380.0)
    affine = draw_affine(generator("augment", 0, 0, key), DataConfig(**MOVES), view)
    assert affine @ (215.0, 180.0, 1.0) == pytest.approx([215.0, 180.0])


def test_all_off_draws_nothing():
    rng, other = generator("augment", 0, 0, 0), generator("augment", 0, 0, 0)
    assert draw_affine(rng, DataConfig(), WHOLE) is None
    assert rng.random() == other.random()


def test_images_are_decoded_as_large_as_the_scale_needs():
    params = AugmentParams((0.0, 0.0, 1600.0, 1600.0), False)
    sizes = [
        decode_size(params._replace(affine=factor * IDENTITY), (1600, 1600), (320, 320))
        for factor in (0.5, 1.0, 2.0)
    ]
    assert sizes == [(160, 160), (320, 320), (640, 640)]
    assert decode_size(params, (1600, 1600), (320, 320)) == (320, 320)


def test_strong_reductions_average_areas():
    image = noise(1600, 1600)
    params = AugmentParams((0.0, 0.0, 1600.0, 1600.0), False, affine=0.5 * IDENTITY)
    assert warped(image, params)[:150, :150].std() < 15  # of noise with 74


@pytest.mark.parametrize(
    ("field", "value"), [("rotate", -1), ("rotate", 181), ("scale", 1), ("shear", 45)]
)
def test_values_out_of_bounds_are_rejected(field, value):
    with pytest.raises(ValidationError, match=field):
        DataConfig(**{field: value})
