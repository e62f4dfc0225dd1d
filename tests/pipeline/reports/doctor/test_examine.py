"""Statistics of annotations, and what is found in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model.anchor_shapes import AnchorShapes
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.sample import Sample
from pipeline.reports.doctor import statistics
from pipeline.reports.doctor.anchor_fit import AnchorFit
from pipeline.reports.doctor.box_findings import anchor_findings, box_findings, size_findings
from pipeline.reports.doctor.finding import Finding, percent
from pipeline.reports.doctor.set_findings import (
    class_findings,
    conversion_findings,
    sample_findings,
    split_findings,
)
from pipeline.reports.doctor.statistics import Statistics

PAPER = AnchorShapes()
Box = tuple[float, float, float, float]


def manifest(classes: str = "ab", digest: str = "0", **fields: Any) -> Manifest:
    content: dict[str, Any] = {
        "name": "n",
        "split": "train",
        "source": "s",
        "fingerprint": "f",
        "classes": list(classes),
        "samples": 100,
        "samples_without_objects": 0,
        "boxes": sum(fields.get("boxes_per_class", {}).values()),
        "boxes_per_class": {},
        "shards": [{"name": "s.tar", "samples": 100, "bytes": 1, "sha256": digest * 64}],
        "problem_counts": {},
    }
    return Manifest(**{**content, **fields})


def sample(
    boxes: Sequence[Box], labels: Sequence[int], side: tuple[int, int] = (320, 320), **fields: Any
) -> Sample:
    flags = [False] * len(boxes)
    content: dict[str, Any] = {
        "image_id": "1",
        "file_name": "1.jpg",
        "width": side[0],
        "height": side[1],
        "boxes": boxes,
        "labels": labels,
        "difficult": flags,
        "crowd": flags,
        "area": [1.0] * len(boxes),
    }
    return Sample.make(**{**content, **fields})


def collected(
    samples: Sequence[Sample], classes: str = "ab", fit: str = "stretch", **fields: Any
) -> Statistics:
    found = Statistics(manifest(classes, **fields), 320, fit)
    for one in samples:
        found.add(one, PAPER)
    found.finish(PAPER)
    return found


def only(findings: Sequence[Finding], check: str) -> Finding:
    (finding,) = (one for one in findings if one.check == check)
    return finding


def test_objects_are_counted_by_class_and_size_without_crowds() -> None:
    boxes = [(0, 0, 4, 4), (0, 0, 100, 100), (10, 10, 300, 300)]
    found = collected(
        [
            sample(boxes, [0, 1, 1], crowd=[False, False, True]),
            sample([], []),
            sample(boxes[:1], [0], (640, 160)),  # 2 x 8 px in the input
        ]
    )
    assert (found.samples, found.empty, found.crowd, found.objects) == (3, 1, 1, 3)
    assert found.objects_per_class.tolist() == [2, 1]
    assert found.images_per_class.tolist() == [2, 1]
    assert found.objects_per_side.tolist() == [2, 0, 0, 0, 1, 0]
    assert found.missed_per_class.tolist() == [2, 0]
    assert found.missed == 2
    assert found.small[4, 320] == 0 and found.small[8, 320] == 2
    assert found.elongated == 1


def test_letterbox_keeps_the_aspect_ratio_of_boxes() -> None:
    wide = sample([(0, 0, 64, 64)], [0], (640, 160))
    assert collected([wide]).kept_boxes.tolist() == [[0, 0, 32, 128]]
    assert collected([wide], fit="letterbox").kept_boxes.tolist() == [[0, 0, 32, 32]]


def test_statistics_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 200, (60, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(3, 100, (60, 2))], 1)
    samples = [sample(boxes[n : n + 6].tolist(), [0, 1] * 3) for n in range(0, 60, 6)]
    whole = collected(samples)
    monkeypatch.setattr(statistics, "_CHUNK_OBJECTS", 7)
    parts = collected(samples)
    assert parts.missed == whole.missed > 0
    assert parts.small == whole.small
    assert np.array_equal(parts.kept_boxes, whole.kept_boxes)


def test_kept_objects_are_limited_and_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_KEPT_OBJECTS", 200)
    monkeypatch.setattr(statistics, "_CHUNK_OBJECTS", 50)
    samples = [sample([(0, 0, n / 10 + 1, 10)], [0]) for n in range(2000)]
    kept = collected(samples).kept_boxes[:, 2]
    assert len(kept) == 200
    assert 90 < np.mean(kept) < 112


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_copies_of_boxes_are_counted_in_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ROWS", rows)
    box = (10.0, 10.0, 110.0, 110.0)
    boxes = [box, (10.0, 10.0, 110.0, 112.0), box, (200.0, 200.0, 220.0, 220.0), box]
    found = collected([sample(boxes, [0, 0, 0, 0, 1])])
    assert (found.equal.pairs, found.near.pairs, found.two_classes.pairs) == (1, 2, 3)
    equal = only(list(box_findings(found)), "equal_boxes")
    assert equal.severity == "warning"
    assert equal.details == ["for example in 1.jpg"]


def test_set_without_copies_has_no_finding_about_boxes() -> None:
    found = collected([sample([(0, 0, 50, 50), (60, 60, 110, 110)], [0, 1])])
    assert not [*box_findings(found), *size_findings(found), *anchor_findings(found, None)]


@pytest.mark.parametrize(("bad", "severity"), [(1, "warning"), (11, "error")])
def test_unreadable_samples_are_an_error_where_a_training_would_stop(
    bad: int, severity: str
) -> None:
    found = collected([sample([(0, 0, 50, 50)], [0])] * 100)
    found.unreadable = bad
    assert only(list(sample_findings(found)), "unreadable_samples").severity == severity


def test_set_without_objects_is_an_error_and_nothing_else() -> None:
    found = collected([sample([], [])])
    assert only(list(sample_findings(found)), "no_objects").severity == "error"
    assert not [*class_findings(found), *box_findings(found), *anchor_findings(found, None)]


@pytest.mark.parametrize(("empty", "severity"), [(10, "note"), (90, "warning")])
def test_images_without_objects(empty: int, severity: str) -> None:
    full = [sample([(0, 0, 50, 50)], [0])] * (100 - empty)
    finding = only(
        list(sample_findings(collected([*full, *[sample([], [])] * empty]))),
        "images_without_objects",
    )
    assert finding.severity == severity
    assert f"{empty} of 100 ({empty} %)" in finding.text


def test_few_and_elongated_images() -> None:
    found = collected([sample([(0, 0, 50, 50)], [0], (700, 300))] * 20)
    checks = {one.check for one in sample_findings(found)}
    assert checks == {"few_images", "elongated_images"}
    boxed = collected([sample([(0, 0, 50, 50)], [0], (700, 300))] * 20, fit="letterbox")
    assert {one.check for one in sample_findings(boxed)} == {"few_images"}


def test_rare_and_absent_classes_and_imbalance() -> None:
    common = [sample([(n, 0, n + 40, 50) for n in range(0, 250, 5)], [0] * 50)] * 3
    found = collected([*common, sample([(0, 0, 50, 50)], [1])], "abc")
    findings = list(class_findings(found))
    assert only(findings, "classes_without_objects").classes == ["c"]
    few = only(findings, "few_objects")
    assert few.classes == ["b"] and "b (1)" in few.text
    assert only(findings, "imbalance").classes == ["a", "b"]
    assert not list(class_findings(collected(common, "a")))


@pytest.mark.parametrize(
    ("counts", "check", "severity"),
    [
        ({"leak": 1}, "leak", "warning"),
        ({"leak": 2}, "leak", "error"),
        ({"near duplicate": 2}, "near_duplicates", "note"),
        ({"near duplicate": 20}, "near_duplicates", "warning"),
        ({"box dropped": 1}, "lost_in_conversion", "warning"),
        ({"box dropped": 100}, "lost_in_conversion", "error"),
        ({"image skipped": 20}, "lost_in_conversion", "error"),
    ],
)
def test_problems_of_the_conversion(counts: dict[str, int], check: str, severity: str) -> None:
    converted = manifest(problem_counts=counts, boxes_per_class={"a": 500})
    (finding,) = conversion_findings(converted)
    assert (finding.check, finding.severity) == (check, severity)


def test_other_splits() -> None:
    found = collected([], "abc", boxes_per_class={"a": 900, "c": 100})
    others = {
        "same": manifest("abc"),
        "order": manifest("acb", "1"),
        "few": manifest("abc", "1", boxes_per_class={"a": 999, "b": 1, "c": 1}),
        "many": manifest("abc", "1", boxes_per_class={"a": 9, "b": 1}),
    }
    findings = list(split_findings(found, others))
    assert [(one.check, one.severity, one.classes) for one in findings] == [
        ("same_content", "error", []),
        ("other_classes", "error", []),
        ("classes_only_in_other_split", "warning", ["b"]),
        ("classes_only_in_other_split", "error", ["b"]),
        ("classes_absent_from_other_split", "warning", ["c"]),
    ]


def test_small_objects_and_anchors() -> None:
    tiny = [sample([(0, 0, 6, 6), (100, 100, 140, 140)], [0, 1])] * 10
    found = collected(tiny)
    small = only(list(size_findings(found)), "small_objects")
    assert small.severity == "warning"
    assert small.details == ["smaller than 8 px: 0 % at 512 px, 0 % at 640 px, 0 % at 960 px"]
    (anchors,) = anchor_findings(found, None)
    assert anchors.severity == "warning"
    assert "50 % of the objects have no anchor" in anchors.text
    assert anchors.classes == ["a"] and anchors.details == ["worst classes: a 100 % of 10"]
    (better,) = anchor_findings(found, AnchorFit(AnchorShapes(6.0), 0.25))
    assert "25 % left: base 6 px" in better.remedy


def test_percent_keeps_the_digits_that_matter() -> None:
    shares = (percent(part, 1000) for part in (0, 0.4, 4, 25, 354, 1000))
    assert list(shares) == ["0 %", "0.04 %", "0.4 %", "2.5 %", "35 %", "100 %"]
    assert percent(0, 0) == "0 %"
