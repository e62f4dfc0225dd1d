"""Test what becomes of boxes whose annotated size is not that of the image."""

import pytest

from pipeline.data.conversion.frames.annotated_size import fit_objects, has_shape
from pipeline.data.sources.record import Object, Record
from pipeline.data.transforms.decode import ImageError

BOX = (10.0, 20.0, 60.0, 80.0)


def record(size: tuple[int, int] | None, box: tuple[float, ...] = BOX, **other) -> Record:
    x1, y1, x2, y2 = box
    objects = [Object("cat", (x1, y1, x2, y2), area=100.0)]
    return Record("a", "a.jpg", b"", "a.xml", size, objects, **other)


@pytest.mark.parametrize("size", [None, (160, 120), (0, 0), (0, 120), (-1, -1), (158, 122)])
def test_boxes_are_kept_if_the_size_is_about_right_or_absent(size):
    fitted = fit_objects(record(size), (160, 120), sideways=False)
    assert fitted.objects[0].box == BOX and fitted.repair is None
    assert (fitted.note is None) == (size in (None, (160, 120)))


@pytest.mark.parametrize(
    ("size", "image"),
    [
        ((320, 240), (160, 120)),
        ((80, 60), (160, 120)),
        ((500, 375), (333, 250)),
        ((64, 48), (4000, 3016)),
    ],
)
def test_boxes_are_scaled_if_the_shape_is_the_same(size, image):
    x, y = image[0] / size[0], image[1] / size[1]
    fitted = fit_objects(record(size, (10, 20, 60, 47)), image, sideways=False)
    assert fitted.objects[0].box == pytest.approx((10 * x, 20 * y, 60 * x, 47 * y))
    assert fitted.objects[0].area == pytest.approx(100 * x * y)
    assert fitted.repair and fitted.repair.startswith(f"annotated size is {size[0]}x{size[1]}, ")


@pytest.mark.parametrize("size", [(120, 160), (200, 120), (157, 120), (320, 200)])
def test_another_shape_is_an_error(size):
    with pytest.raises(ImageError, match=r"annotated size is \d+x\d+, the image is 160x120; corr"):
        fit_objects(record(size), (160, 120), sideways=False)


def test_box_outside_the_annotated_size_is_an_error():
    with pytest.raises(ImageError, match="a box reaches out of the annotated size"):
        fit_objects(record((80, 60)), (160, 120), sideways=False)


@pytest.mark.parametrize(("size", "size_upright"), [((160, 120), True), ((120, 160), False)])
def test_annotated_size_may_be_of_the_other_frame(size, size_upright):
    sideways = record(size, upright=True, size_upright=size_upright)
    assert fit_objects(sideways, (160, 120), sideways=True) == (sideways.objects, None, None)


def test_fractions_have_no_size_to_fit():
    relative = record((10, 10), relative=True)
    assert fit_objects(relative, (160, 120), sideways=False).objects == relative.objects


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((160, 120), (159, 121), True),
        ((160, 120), (120, 160), False),
        ((4032, 3024), (640, 480), True),
        ((1333, 750), (500, 281), True),
        ((100, 75), (100, 120), False),
        ((0, 0), (100, 120), False),
    ],
)
def test_shapes_are_compared_in_both_directions(first, second, same):
    assert has_shape(first, second) == has_shape(second, first) == same
