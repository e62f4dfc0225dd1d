import numpy as np
import pytest

from pipeline.reports import Boxes, contact_sheet, draw_detections, pr_curves, side_by_side
from pipeline.reports.pictures import class_color

NONE = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64))
ONE = Boxes(np.array([[20.0, 30.0, 60.0, 70.0]]), np.array([1]), np.array([0.9]))
CLASSES = ["circle", "square"]


def grey(height=100, width=120):
    return np.full((height, width, 3), 128, np.uint8)


def test_box_is_drawn_on_its_border_of_a_copy():
    image = grey()
    drawn = draw_detections(image, ONE, CLASSES)
    color = class_color(1)
    assert (image == 128).all()
    assert tuple(drawn[69, 40]) == tuple(drawn[50, 20]) == tuple(drawn[50, 59]) == color
    assert tuple(drawn[50, 60]) == tuple(drawn[70, 40]) == (128, 128, 128)  # x2 and y2 exclusive
    assert tuple(drawn[50, 40]) == (128, 128, 128)


def test_no_boxes_leave_the_image_unchanged():
    assert (draw_detections(grey(), NONE, CLASSES) == 128).all()


@pytest.mark.parametrize(
    "box", [[-50, -50, 500, 500], [119.6, 99.7, 120, 100], [0, 0, 0.2, 0.2], [500, 500, 600, 600]]
)
@pytest.mark.parametrize("shape", [(100, 120), (1, 1), (3, 500)])
def test_boxes_at_and_over_the_edge_are_drawn(box, shape):
    found = Boxes(np.array([box], dtype=np.float64), np.array([0]), np.array([0.5]))
    assert draw_detections(grey(*shape), found, CLASSES).shape == (*shape, 3)


def test_best_box_is_drawn_last():
    boxes = np.array([[20.0, 30.0, 60.0, 70.0]] * 2)
    for order in ([0, 1], [1, 0]):
        found = Boxes(boxes, np.array([0, 1])[order], np.array([0.9, 0.3])[order])
        assert tuple(draw_detections(grey(), found, CLASSES)[50, 20]) == class_color(0)


def test_side_by_side_has_ground_truth_left_and_detections_right():
    pair = side_by_side(grey(), NONE, ONE, CLASSES, side=120)
    assert pair.shape == (100, 248, 3)
    assert (pair[:, :120] == 128).all()
    assert tuple(pair[50, 128 + 20]) == class_color(1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_contact_sheet_accepts_images_of_all_shapes(count):
    shapes = [(100, 120), (300, 40), (20, 400), (64, 64), (1, 1)][:count]
    pairs = [(grey(*shape), NONE, ONE) for shape in shapes]
    sheet = contact_sheet(pairs, CLASSES, [f"{n}.jpg" for n in range(count)], side=100)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] >= 208 * min(count, 2)


def test_contact_sheet_without_images_raises():
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], CLASSES)


def test_neighbouring_classes_have_different_colors():
    colors = np.array([class_color(label) for label in range(80)], dtype=float)
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 100
    assert len({tuple(color) for color in colors}) == 80


def test_curves_show_defined_classes_and_their_mean(tmp_path):
    recall = np.linspace(0, 1, 101)
    curves = {"a": 1 - recall, "b": np.ones(101), "undefined": np.full(101, -1.0)}
    figure = pr_curves(recall, curves)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["a 0.500", "b 1.000", "mean 0.750"]
    figure.savefig(tmp_path / "pr.png")
    assert (tmp_path / "pr.png").stat().st_size > 5000


def test_no_defined_class_gives_an_empty_figure():
    assert not pr_curves(np.linspace(0, 1, 101), {"a": np.full(101, np.nan)}).axes[0].lines
