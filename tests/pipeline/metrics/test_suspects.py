"""Test that wrong labels are found and right ones are not suspected."""

from pipeline.metrics.suspects import label_suspects
from tests.pipeline.metrics.scenes import detections, objects, table

BOX = (10.0, 10.0, 60.0, 60.0)
OTHER = (100.0, 100.0, 150.0, 150.0)
AWAY = (160.0, 10.0, 190.0, 40.0)


def test_each_kind_is_found_once() -> None:
    truth = objects([BOX, OTHER], [0, 1])
    # BOX looks like class 1, nothing is near OTHER, AWAY has no label; the last is weak.
    found = detections([BOX, AWAY, AWAY, (0, 150, 40, 190)], [0.9, 0.8, 0.7, 0.2], [1, 0, 1, 0])
    suspects = label_suspects(table((truth, found)), 0.5, 10)
    assert [(s.kind, s.label, s.object) for s in suspects] == [
        ("unlabelled", 0, -1),
        ("wrong class", 1, 0),
        ("nothing there", 1, 1),
    ]
    assert suspects[0].box == AWAY
    assert suspects[2].strength == 1.0


def test_right_labels_are_not_suspected() -> None:
    truth = objects([BOX, OTHER], [0, 1], difficult=[False, True])
    found = detections([BOX, BOX], [0.9, 0.8], [0, 1])
    assert label_suspects(table((truth, found)), 0.5, 10) == []


def test_strongest_come_first_and_the_limit_is_per_kind() -> None:
    image = objects([BOX], [0])
    images = [(image, detections([AWAY], [0.5 + number / 100], [0])) for number in range(20)]
    suspects = label_suspects(table(*images), 0.5, 3)
    strengths = [s.strength for s in suspects if s.kind == "unlabelled"]
    assert len(strengths) == 3
    assert strengths == sorted(strengths, reverse=True)
    assert [s.image for s in suspects if s.kind == "unlabelled"] == [19, 18, 17]
