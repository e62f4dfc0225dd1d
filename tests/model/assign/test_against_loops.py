"""Assigners against plain loops that follow the paper's steps, on random and adversarial images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.anchors import make_anchors
from model.assign import build_assigner

Rows = list[list[float]]


def iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [max(x2 - x1, 0.0) * max(y2 - y1, 0.0) for x1, y1, x2, y2 in (a, b)]
    return width * height / max(areas[0] + areas[1] - width * height, 1e-300)


def claim(quality: Rows) -> tuple[list[int], list[float]]:
    """Step 1: each object's best anchor is set to 1, each anchor stays with its best object."""
    quality = [list(row) for row in quality]
    for row in quality:
        if max(row) > 0:
            row[row.index(max(row))] = 1.0
    owners, values = [], []
    for column in zip(*quality, strict=True):
        best = max(column)
        owners.append(column.index(best) if best > 0 else -1)
        values.append(best)
    return owners, values


def ranked(owners: list[int], values: list[float], g: int) -> list[int]:
    return sorted((i for i, o in enumerate(owners) if o == g), key=lambda i: -values[i])


def mutual_guidance(
    anchors: Rows, objects: Rows, labels: list[int], boxes: Rows, scores: Rows, sigma: float
) -> tuple[list[int], list[int]]:
    a = [[iou(g, x) for x in anchors] for g in objects]
    r = [[iou(g, x) for x in boxes] for g in objects]
    q = [
        [v ** ((sigma - p[label]) / sigma) for v, p in zip(row, scores, strict=True)]
        for row, label in zip(a, labels, strict=True)
    ]
    static, regressed, amplified = claim(a), claim(r), claim(q)
    cls, loc = [-1] * len(anchors), [-1] * len(anchors)
    for g in range(len(objects)):
        held = [v for o, v in zip(*static, strict=True) if o == g]
        positives, spared = sum(v >= 0.5 for v in held), sum(v >= 0.4 for v in held)
        for rank, i in enumerate(ranked(*regressed, g)):
            cls[i] = g if rank < positives else -2 if rank < spared else -1
        for i in ranked(*amplified, g)[:positives]:
            loc[i] = g
    return cls, loc


def max_iou(anchors: Rows, objects: Rows) -> tuple[list[int], list[int]]:
    owners, values = claim([[iou(g, x) for x in anchors] for g in objects])
    pairs = list(zip(owners, values, strict=True))
    loc = [o if v >= 0.5 else -1 for o, v in pairs]
    cls = [-2 if o >= 0 and 0.4 <= v < 0.5 else x for (o, v), x in zip(pairs, loc, strict=True)]
    return cls, loc


Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_case(seed: int, objects: int, adversity: str) -> Case:
    """One image in float64: anchors (A, 4), objects (1, M, 4) and so on."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    anchors = make_anchors(64)[0].double()
    centre, size = rand(1, objects, 2) * 64, rand(1, objects, 2) * 40 + 4
    gt = torch.cat([centre - size / 2, centre + size / 2], -1)
    labels = torch.randint(0, 3, (1, objects), generator=draw)
    boxes = anchors + (rand(1, len(anchors), 4) - 0.5) * 16
    scores = rand(1, len(anchors), 3)
    if adversity == "ties":
        gt, boxes = (gt / 8).round() * 8, (boxes / 8).round() * 8
        scores = scores.round()
    elif adversity == "identical":
        gt, labels = gt[:, :1].expand_as(gt).clone(), labels[:, :1].expand_as(labels).clone()
    elif adversity == "far away":
        gt[:, ::2] += 1e4
    elif adversity == "inverted":
        boxes = torch.where(rand(1, len(anchors), 1) < 0.5, boxes[..., [2, 3, 0, 1]], boxes)
    elif adversity == "on anchors":
        gt[0, :] = anchors[torch.randint(0, len(anchors), (objects,), generator=draw)]
        boxes = anchors[None].clone()
    return anchors, gt, labels, boxes, scores


ADVERSITIES = ("none", "ties", "identical", "far away", "inverted", "on anchors")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    objects=st.sampled_from([1, 2, 5, 9, 20]),
    adversity=st.sampled_from(ADVERSITIES),
)
def test_mutual_guidance(seed: int, objects: int, adversity: str) -> None:
    anchors, gt, labels, boxes, scores = random_case(seed, objects, adversity)
    # sigma 2 and scores of 0 or 1 keep equal qualities exactly equal in both ways of computing.
    answer = build_assigner("mutual_guidance")(anchors, gt, labels, boxes, scores)
    cls, loc = mutual_guidance(
        anchors.tolist(), gt[0].tolist(), labels[0].tolist(), boxes[0].tolist(),
        scores[0].tolist(), 2.0,
    )  # fmt: skip
    assert answer.cls_index[0].tolist() == cls
    assert answer.loc_index[0].tolist() == loc


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    objects=st.sampled_from([1, 2, 5, 9, 20]),
    adversity=st.sampled_from(ADVERSITIES),
)
def test_max_iou(seed: int, objects: int, adversity: str) -> None:
    anchors, gt, labels, _, _ = random_case(seed, objects, adversity)
    answer = build_assigner("max_iou")(anchors, gt, labels)
    cls, loc = max_iou(anchors.tolist(), gt[0].tolist())
    assert answer.cls_index[0].tolist() == cls
    assert answer.loc_index[0].tolist() == loc


@pytest.mark.parametrize("adversity", ["none", "ties", "identical", "far away", "on anchors"])
def test_positives_are_known_beforehand(adversity: str) -> None:
    anchors, gt, labels, boxes, scores = random_case(3, 9, adversity)
    for name in ("mutual_guidance", "max_iou"):
        assigner = build_assigner(name)
        answer = assigner(anchors, gt, labels, boxes, scores)
        expected = assigner.expected_positives(anchors, gt, labels)
        assert expected is not None
        counts = [int((index >= 0).sum()) for index in (answer.cls_index, answer.loc_index)]
        assert expected.tolist() == counts
        assert math.prod(counts) > 0
