"""Test the JSON of samples: valid, or rejected with a reason."""

import json

import numpy as np
import pytest

from pipeline.data.shards.sample import Sample, SampleError

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


def test_sample_survives_json():
    sample = Sample.make(**GOOD)
    assert json.loads(sample.to_json()) == GOOD
    assert Sample.from_json(sample.to_json()) == sample


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": []}, "differ in length"),
        ({"boxes": [[5, 5, 5, 9]]}, "empty or extends beyond the image"),
        ({"boxes": [[0, 0, 41, 9]]}, "empty or extends beyond the image"),
        ({"boxes": [[0, 0, float("nan"), 9]]}, "empty or extends beyond the image"),
        ({"boxes": [[0, 0, 9]]}, "of length 4"),
        ({"width": 0}, ">= 1"),
        ({"width": 10**400}, "<="),
        ({"width": 40.5}, "Expected `int`, got `float`"),
        ({"labels": ["2"]}, "Expected `int`, got `str`"),
        ({"crowd": [1]}, "Expected `bool`, got `int`"),
    ],
)
def test_inconsistent_fields_are_rejected(change, reason):
    fields = {**GOOD, **change}
    with pytest.raises(SampleError, match=reason):
        Sample.make(**fields)
    if "NaN" not in (text := json.dumps(fields)):
        with pytest.raises(SampleError, match=f"^damaged JSON: .*{reason}"):
            Sample.from_json(text.encode())


def test_unknown_field_is_rejected():
    fields = {**GOOD, "more": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'more'"):
        Sample.make(**fields)
    with pytest.raises(SampleError, match="^damaged JSON: .*unknown field `more`"):
        Sample.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"image_id": "\xff"}',
        b'{"\xff": 1}',
        b'{"image_id": "7"}',
        json.dumps(GOOD).encode() + b" x",
    ],
)
def test_data_that_is_not_a_sample_is_rejected(text):
    with pytest.raises(SampleError, match="^damaged JSON: "):
        Sample.from_json(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
@pytest.mark.parametrize("field", ["boxes", "area"])
def test_numbers_that_are_not_finite_are_rejected(field, number):
    text = json.dumps(GOOD).replace("30.0", number) if field == "boxes" else json.dumps(GOOD)
    text = text.replace("12.5", number) if field == "area" else text
    assert number in text
    with pytest.raises(SampleError):
        Sample.from_json(text.encode())


@pytest.mark.parametrize(
    ("crowd", "objects"),
    [([False, False], [0, 1]), ([True, False], [1]), ([True, True], []), ([], [])],
)
def test_crowd_regions_are_not_objects(crowd, objects):
    boxes = np.array([[0.0, 1.5, 40.0, 30.0], [1.0, 2.0, 3.0, 4.0]])
    many = len(crowd)
    fields = {"boxes": boxes[:many].tolist(), "labels": [0] * many, "difficult": [False] * many}
    sample = Sample.make(**{**GOOD, **fields, "crowd": crowd, "area": [1.0] * many})
    found = sample.objects()
    assert found.shape == (len(objects), 4) and np.array_equal(found, boxes[objects])


def test_area_that_is_not_finite_is_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Sample.make(**{**GOOD, "area": [float("nan")]}).to_json()


def test_integers_are_written_as_floats():
    whole = Sample.make(**{**GOOD, "boxes": [[0, 1, 40, 30]], "area": [12]})
    assert b'"boxes":[[0.0,1.0,40.0,30.0]]' in whole.to_json()
    assert b'"area":[12.0]' in whole.to_json()
