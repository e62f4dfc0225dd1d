"""Synthetic scenes: reproducible, learnable, different in each split."""

import numpy as np
import pytest

from pipeline.data.sources.synthetic import (
    CLASSES,
    MAX_OBJECTS,
    MIN_SIDE,
    MIN_VISIBLE,
    draw_scene,
    shapes_source,
)
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, "train", i, 128) for i in range(40)]


def test_scenes_depend_on_seed_split_and_index_only(scenes):
    image, objects = draw_scene(0, "train", 17, 128)
    assert np.array_equal(image, scenes[17][0]) and objects == scenes[17][1]
    for other in [(1, "train", 17), (0, "test", 17), (0, "train", 18)]:
        assert not np.array_equal(draw_scene(*other, 128)[0], image)


def test_objects_cover_all_classes_and_stay_inside(scenes):
    assert {o.name for _, objects in scenes for o in objects} == set(CLASSES)
    for image, objects in scenes:
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert 1 <= len(objects) <= MAX_OBJECTS
        for o in objects:
            x1, y1, x2, y2 = o.box
            assert 0 <= x1 < x2 <= 128 and 0 <= y1 < y2 <= 128
            assert 10 <= max(x2 - x1, y2 - y1) <= 61


def test_boxes_are_tight_around_drawn_objects(monkeypatch):
    # In a scene with one object, only its pixels differ from a plain background.
    def plain(rng, size):
        return np.full((size, size, 3), 20, np.float32)

    monkeypatch.setattr("pipeline.data.sources.synthetic._background", plain)
    monkeypatch.setattr("pipeline.data.sources.synthetic.MAX_OBJECTS", 1)
    monkeypatch.setattr(
        "pipeline.data.sources.synthetic._random_colour", lambda *_: np.full(3, 255, np.float32)
    )
    for index in range(30):
        image, (only,) = draw_scene(0, "plain", index, 128)
        seen = image.mean(2) > 137
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert found == pytest.approx(only.box, abs=1)


def test_objects_overlap_but_stay_visible(monkeypatch):
    kept: list[list[np.ndarray]] = []
    import pipeline.data.sources.synthetic as shapes

    place = shapes._place_object

    def spy(rng, image, placed, low, high):
        place(rng, image, placed, low, high)
        kept.append([mask > 127 for _, mask in placed])

    monkeypatch.setattr(shapes, "_place_object", spy)
    overlaps = 0
    for index in range(30):
        kept.clear()
        draw_scene(0, "train", index, 128)
        masks = kept[-1]
        for i, mask in enumerate(masks):
            above = np.any(masks[i + 1 :], axis=0) if masks[i + 1 :] else np.zeros_like(mask)
            assert (mask & ~above).sum() >= MIN_VISIBLE * mask.sum()
            overlaps += bool((mask & above).any())
    assert overlaps >= 5


def test_source_states_total_classes_and_ids():
    source = shapes_source(3, "val", size=64, seed=5)
    records = [image.read_record() for image in source.images]
    assert source.total == 3 and source.classes == CLASSES and source.problems == []
    assert [r.image_id for r in records] == [f"val-5-{i:06d}" for i in range(3)]
    assert all(r.size == (64, 64) and r.image[:2] == b"\xff\xd8" for r in records)


def test_objects_of_former_versions_stay_the_same():
    assert [(o.name, o.box) for o in draw_scene(0, "train", 0, 128)[1][:3]] == [
        ("square", (7.0, 86.0, 34.0, 113.0)),
        ("circle", (49.0, 1.0, 71.0, 22.0)),
        ("square", (63.0, 13.0, 98.0, 47.0)),
    ]


def test_objects_have_the_given_sides_and_number():
    scenes = [draw_scene(0, "train", i, 128, (6, 16), 15)[1] for i in range(30)]
    assert max(map(len, scenes)) > MAX_OBJECTS and max(map(len, scenes)) <= 15
    sides = [max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for scene in scenes for o in scene]
    # A shape is drawn within a circle of the side; triangles are narrower.
    assert 4 <= min(sides) < 8 and 14 <= max(sides) <= 17


def test_source_passes_the_limits_of_objects_on():
    (image,) = shapes_source(1, "train", 64, 0, (6, 8), 9).images
    assert image.read_record().objects == draw_scene(0, "train", 0, 64, (6, 8), 9)[1]
    assert repr(image) != repr(next(iter(shapes_source(1, "train", 64).images)))


@pytest.mark.parametrize("sides", [(MIN_SIDE - 1, 20), (20, 65), (20, 10)])
def test_impossible_sides_raise(sides):
    with pytest.raises(UserError, match="in images of 64: give 4 <= smallest <= largest <= 64"):
        shapes_source(1, "train", 64, sides=sides)
