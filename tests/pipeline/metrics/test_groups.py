"""Test recall by size, aspect and crowding of objects."""

import numpy as np
import pytest

from pipeline.metrics.groups import crowding, recall_by_group
from tests.pipeline.metrics.scenes import detections, objects, table

SMALL = (0.0, 0.0, 10.0, 10.0)
LARGE = (50.0, 0.0, 200.0, 100.0)  # 150 x 100
TALL = (0.0, 50.0, 20.0, 150.0)


def test_recall_by_size_and_aspect() -> None:
    truth = objects([SMALL, LARGE, TALL], [0, 0, 0])
    found = table((truth, detections([LARGE, TALL], [0.9, 0.3], [0, 0])))
    groups = recall_by_group(found, 0.5)
    assert [(group.objects, group.recall) for group in groups["size"]] == [
        (1, 0.0),
        (0, pytest.approx(np.nan, nan_ok=True)),
        (1, 0.0),
        (1, 1.0),
    ]
    assert [group.objects for group in groups["aspect"]] == [1, 0, 2, 0]
    assert recall_by_group(found, 0.2)["size"][2].recall == 1.0


def test_crowding_is_the_highest_overlap_with_another_object_of_the_image() -> None:
    twins = objects([SMALL, SMALL, LARGE], [0, 1, 0])
    alone = objects([SMALL], [0])
    found = table((twins, detections()), (alone, detections()))
    assert crowding(found).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert [group.objects for group in recall_by_group(found, 0.5)["crowding"]] == [2, 0, 2]
