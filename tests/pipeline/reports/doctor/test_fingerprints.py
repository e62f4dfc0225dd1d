"""Images that two splits have in common, by their annotations."""

import pytest

from pipeline.data.shards.sample import Sample
from pipeline.reports.doctor import fingerprints
from pipeline.reports.doctor.fingerprints import Fingerprints
from pipeline.reports.doctor.set_findings import common_findings


def sample(number: int, boxes: int = 2, name: str = "") -> Sample:
    """Return a sample whose boxes differ for every number."""
    count = range(boxes)
    return Sample.make(
        image_id=str(number),
        file_name=name or f"{number}.jpg",
        width=10_000,
        height=50,
        boxes=[(number, 10 * n, number + 5, 10 * n + 5) for n in count],
        labels=[0 for _ in count],
        difficult=[False for _ in count],
        crowd=[False for _ in count],
        area=[25.0 for _ in count],
    )


def filled(numbers: range, boxes: int = 2, name: str = "") -> Fingerprints:
    found = Fingerprints()
    for number in numbers:
        found.add(sample(number, boxes, name))
    return found


def test_equal_boxes_are_found_whatever_name_class_and_order() -> None:
    one = sample(3)
    same = Sample.make(
        **{
            **{name: getattr(one, name) for name in one.__struct_fields__},
            "file_name": "copy.jpg",
            "labels": [1, 0],
            "boxes": list(reversed(one.boxes)),
        }
    )
    other = filled(range(100, 120))
    other.add(same)
    assert filled(range(10)).common(other) == (1, [("3.jpg", "copy.jpg")])


@pytest.mark.parametrize("boxes", [0, 1])
def test_few_boxes_prove_nothing(boxes: int) -> None:
    assert filled(range(5), boxes).common(filled(range(5), boxes)) == (0, [])
    assert Fingerprints().common(filled(range(5))) == (0, [])


def test_large_sets_are_compared_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MAX_KEPT", 200)
    large, small = filled(range(2000)), filled(range(1000, 1150))
    assert len(large._kept) <= 201
    count, files = large.common(small)
    assert 90 < count < 220  # an estimate of 150
    assert 5 < len(files) < 30 and files[0][0] == files[0][1]
    assert small.common(large)[0] == count


def test_severity_depends_on_the_share() -> None:
    severities = [
        [finding.severity for finding in common_findings("val", 100, (count, [("a", "b")]))]
        for count in (0, 1, 2)
    ]
    assert severities == [[], ["warning"], ["error"]]
