"""Statistics of an assignment: counts, shares and correlation, and that sums add up."""

import pytest
import torch

from model.assign import Assignment
from model.assign.statistics import assignment_statistics, rank_correlation, statistics_sums


def assignment(cls: list[int], loc: list[int]) -> Assignment:
    c, r = torch.tensor([cls]), torch.tensor([loc])
    return Assignment(c, (c >= 0).float(), r, (r >= 0).float())


BOXES = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 50, 50], [100, 100, 300, 300], [0, 0, 0, 0]]])
LABELS = torch.tensor([[0, 1, 0, -1]])


def figures(cls: list[int], loc: list[int], scores: list[float] | None = None) -> dict[str, float]:
    count = len(cls)
    # Predicted boxes: anchor i covers the first (i + 1) * 10 % of the second object's width.
    pred = torch.tensor([[[0.0, 0, 5.0 * (i + 1), 50] for i in range(count)]])
    score = torch.tensor([scores or [0.5] * count]).unsqueeze(-1).expand(-1, -1, 2)
    sums = statistics_sums(assignment(cls, loc), BOXES, LABELS, pred, score)
    return assignment_statistics({name: float(value) for name, value in sums.items()})


def test_positives_are_counted_by_object_size() -> None:
    found = figures(cls=[1, 1, 0, -1, -2], loc=[1, 1, 1, 0, -1])
    assert found["cls_positives_per_object_small"] == 1
    assert found["cls_positives_per_object_medium"] == 2
    assert found["cls_positives_per_object_large"] == 0
    assert found["loc_positives_per_object_medium"] == 3
    assert found["objects_without_cls_positive"] == pytest.approx(1 / 3)
    assert found["objects_without_loc_positive"] == pytest.approx(1 / 3)
    assert found["task_overlap"] == pytest.approx(2 / 4)  # the third learns another object


@pytest.mark.parametrize(("scores", "expected"), [([0.1, 0.2, 0.9], 1.0), ([0.9, 0.2, 0.1], -1.0)])
def test_scores_and_ious_are_correlated_by_rank(scores: list[float], expected: float) -> None:
    found = figures(cls=[1, 1, 1], loc=[-1, -1, -1], scores=scores)
    assert found["score_iou_correlation"] == pytest.approx(expected)


def test_equal_values_share_their_mean_rank() -> None:
    x, y = torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 3, 4])
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert float(rank_correlation(x, y)) == pytest.approx((4.5 / 5) ** 0.5)
    assert float(rank_correlation(torch.ones(4), y)) == 0
    assert float(rank_correlation(torch.empty(0), torch.empty(0))) == 0


def test_batch_without_objects_has_no_statistics() -> None:
    sums = statistics_sums(
        assignment([-1, -2], [-1, -1]),
        torch.empty(1, 0, 4),
        torch.empty(1, 0, dtype=torch.int64),
        torch.zeros(1, 2, 4),
        torch.zeros(1, 2, 3),
    )
    assert assignment_statistics({name: float(value) for name, value in sums.items()}) == {}


def test_sums_of_two_batches_add_up() -> None:
    one, other = assignment([1, 0, -1], [1, -1, 0]), assignment([2, -2, 1], [2, 2, -1])
    pred, score = torch.zeros(1, 3, 4), torch.rand(1, 3, 2)
    parts = [statistics_sums(a, BOXES, LABELS, pred, score) for a in (one, other)]
    both = Assignment(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    whole = statistics_sums(
        both,
        BOXES.repeat(2, 1, 1),
        LABELS.repeat(2, 1),
        pred.repeat(2, 1, 1),
        score.repeat(2, 1, 1),
    )
    for name in whole.keys() - {"correlation"}:
        assert whole[name] == parts[0][name] + parts[1][name], name
