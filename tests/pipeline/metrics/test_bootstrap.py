"""Test that resamples are those of the images, and that intervals cover."""

import numpy as np
import pytest

from pipeline.metrics import coco_metrics, match_images, voc_per_class
from pipeline.metrics.bootstrap import bootstrap, image_weights, paired_bootstrap
from pipeline.metrics.table import IOU_THRESHOLDS, MatchTable
from tests.pipeline.metrics.scenes import random_scenes

CLASSES = ["a", "b", "c"]


def test_resample_has_the_ap_of_the_images_in_it() -> None:
    table = match_images(random_scenes(0, 30, 3, crowd=0.2, difficult=0.1))
    found = bootstrap(table, 3, resamples=70, seed=1)
    weights = image_weights(30, 70, 1)
    for number in (0, 17, 69):
        images = np.repeat(np.arange(30), weights[number])
        expected = coco_metrics(table.select(images), CLASSES).per_class
        for label, name in enumerate(CLASSES):
            assert found.samples[number, label] == pytest.approx(expected[name]["ap"], abs=1e-12)
    whole = coco_metrics(table, CLASSES)
    assert found.interval().value == pytest.approx(whole.metrics["ap"], abs=1e-12)
    assert found.class_interval(1).value == pytest.approx(whole.per_class["b"]["ap"], abs=1e-12)


@pytest.mark.parametrize(("protocol", "metric"), [("voc07", "voc07"), ("voc", "area")])
@pytest.mark.parametrize("ious", [(0,), (0, 5, 9)])
def test_resample_has_the_voc_ap_of_the_images_in_it(protocol, metric, ious) -> None:
    table = match_images(random_scenes(7, 30, 3, crowd=0.2, difficult=0.2))
    found = bootstrap(table, 3, ious, resamples=70, seed=1, protocol=protocol)
    weights = image_weights(30, 70, 1)
    thresholds = IOU_THRESHOLDS[list(ious)].tolist()
    for number in (0, 17, 69):
        # Each copy of an image has its own objects.
        images = [table.select(np.array([n])) for n in np.repeat(np.arange(30), weights[number])]
        expected = voc_per_class(MatchTable.concatenate(images), CLASSES, thresholds, metric)
        for label, name in enumerate(CLASSES):
            assert found.samples[number, label] == pytest.approx(expected[name], abs=1e-12)
    whole = voc_per_class(table, CLASSES, thresholds, metric)
    assert found.interval().value == pytest.approx(np.mean(list(whole.values())), abs=1e-12)
    assert found.class_interval(1).value == pytest.approx(whole["b"], abs=1e-12)


def test_voc_has_no_ranges_of_area() -> None:
    with pytest.raises(ValueError, match="ranges of area are COCO's"):
        bootstrap(match_images(random_scenes(7, 3, 3)), 3, area=1, protocol="voc")


@pytest.mark.parametrize(("area", "name"), [(1, "ap_small"), (2, "ap_medium"), (3, "ap_large")])
def test_range_of_area_has_the_ap_of_its_objects(area: int, name: str) -> None:
    table = match_images(random_scenes(3, 120, 3, crowd=0.1))
    found = bootstrap(table, 3, resamples=20, seed=1, area=area)
    assert found.interval().value == pytest.approx(coco_metrics(table, CLASSES).metrics[name])
    images = np.repeat(np.arange(120), image_weights(120, 20, 1)[7])
    expected = coco_metrics(table.select(images), CLASSES).metrics[name]
    assert np.nanmean(found.samples[7]) == pytest.approx(expected, abs=1e-12)


def test_interval_contains_the_ap_and_narrows_with_more_images() -> None:
    few, many = (
        bootstrap(match_images(random_scenes(1, images, 2)), 2, resamples=200).interval()
        for images in (20, 320)
    )
    for interval in (few, many):
        assert interval.low < interval.value < interval.high
    # Four times as narrow with 16 times the images, if AP were a mean over images.
    assert 2 < (few.high - few.low) / (many.high - many.low) < 8


def test_class_that_a_resample_lacks_is_left_out_of_its_mean() -> None:
    scenes = random_scenes(2, 6, 2)
    rare = [
        (name, truth, found) if number == 0 else (name, *without(1, truth, found))
        for number, (name, truth, found) in enumerate(scenes)
    ]
    found = bootstrap(match_images(rare), 2, resamples=50)
    absent = np.isnan(found.samples[:, 1])
    assert absent.any()
    assert (image_weights(6, 50, 0)[absent, 0] == 0).all()
    assert not np.isnan(found.interval().low)


def without(label: int, truth, found):
    own = truth.labels != label
    columns = (truth.boxes, truth.labels, truth.crowd, truth.difficult, truth.areas)
    return type(truth)(*(column[own] for column in columns)), found


def test_model_against_itself_gains_exactly_nothing() -> None:
    table = match_images(random_scenes(4, 20, 3))
    interval = paired_bootstrap(table, table, 3, resamples=100).interval()
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_pair_is_judged_more_sharply_than_two_models_apart() -> None:
    scenes = random_scenes(5, 60, 2)
    worse = [
        (name, truth, type(found)(found.boxes, found.scores * keep(number), found.labels))
        for number, (name, truth, found) in enumerate(scenes)
    ]
    one, other = match_images(scenes), match_images(worse)
    gain = paired_bootstrap(one, other, 2, resamples=300)
    paired = gain.interval()
    apart = gain.candidate.interval(), gain.reference.interval()
    assert paired.high - paired.low < max(each.high - each.low for each in apart)


def keep(number: int) -> np.float32:
    return np.float32(0.5 if number % 10 == 0 else 1.0)


def test_other_images_are_refused() -> None:
    one = match_images(random_scenes(6, 5, 2))
    with pytest.raises(ValueError, match="do not have the same images"):
        paired_bootstrap(one, one.select(np.array([0, 1, 2])), 2)
