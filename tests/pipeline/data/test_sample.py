"""A sample's JSON says what it means, or is refused."""

import json

import pytest
from pydantic import ValidationError

from pipeline.data.sample import Sample

GOOD = {
    "image_id": "7",
    "file_name": "ä/7.jpg",
    "width": 40,
    "height": 30,
    "boxes": [[0.0, 1.5, 40.0, 30.0]],
    "labels": [2],
    "difficult": [False],
    "crowd": [True],
    "area": [12.5],
}


def test_json_and_back():
    sample = Sample.model_validate(GOOD)
    assert json.loads(sample.to_json()) == GOOD
    assert Sample.model_validate_json(sample.to_json()) == sample


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": []}, "differ in length"),
        ({"boxes": [[5, 5, 5, 9]]}, "empty or leaves the image"),
        ({"boxes": [[0, 0, 41, 9]]}, "empty or leaves the image"),
        ({"boxes": [[0, 0, float("nan"), 9]]}, "finite number"),
        ({"boxes": [[0, 0, 9]]}, "Field required"),
        ({"width": 0}, "greater than 0"),
        ({"more": 1}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_is_refused(change, reason):
    with pytest.raises(ValidationError, match=reason):
        Sample.model_validate({**GOOD, **change})
