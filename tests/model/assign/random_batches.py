"""Random batches for assigners, without ties: each anchor is moved a little."""

from typing import Unpack

import torch
from torch import Tensor

from model.anchors import make_anchors
from model.assign import Assigner, Assignment, build_assigner
from model.boxes import box_iou
from model.options import AssignerOptions

IMAGE = 128
CLASSES = 4
STRIDES = make_anchors(IMAGE)[1]

Batch = dict[str, Tensor]


def build(
    name: str,
    scale: float = 1.0,
    order: Tensor | None = None,
    **options: Unpack[AssignerOptions],
) -> Assigner:
    strides = STRIDES * scale
    strides = strides if order is None else strides[order]
    return build_assigner(name, anchor_strides=strides, **options)


def batch(images: int, objects: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    anchors = make_anchors(IMAGE)[0].double()
    anchors = anchors + rand(len(anchors), 4) - 0.5
    centre, size = rand(images, objects, 2) * IMAGE, rand(images, objects, 2) * 60 + 8
    case = {
        "anchors": anchors,
        "gt_boxes": torch.cat([centre - size / 2, centre + size / 2], -1),
        "gt_labels": torch.randint(0, CLASSES, (images, objects), generator=draw),
        "pred_boxes": anchors + rand(images, len(anchors), 4) * 24 - 12,
        "pred_scores": rand(images, len(anchors), CLASSES) * 0.3,
    }
    return cast(case, dtype)


def cast(case: Batch, dtype: torch.dtype) -> Batch:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.items()}


def rows(case: Batch, images: slice) -> Batch:
    return {k: v if k == "anchors" else v[images] for k, v in case.items()}


def equal(one: Assignment, other: Assignment) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one: Assignment, other: Assignment, atol: float = 1e-9) -> bool:
    same = (one.cls_index, one.loc_index), (other.cls_index, other.loc_index)
    return all(torch.equal(a, b) for a, b in zip(*same, strict=True)) and all(
        torch.allclose(a, b, rtol=0, atol=atol)
        for a, b in (
            (one.cls_quality.double(), other.cls_quality.double()),
            (one.loc_weight.double(), other.loc_weight.double()),
        )
    )


def share_a_best_anchor(case: Batch) -> bool:
    """Return whether two objects of an image have the same best anchor by A, R or Q."""
    static = box_iou(case["gt_boxes"], case["anchors"])
    label = case["gt_labels"].unsqueeze(1).expand(-1, len(case["anchors"]), -1)
    score = case["pred_scores"].gather(2, label).transpose(1, 2)
    regressed = box_iou(case["gt_boxes"], case["pred_boxes"])
    return any(
        len(row.unique()) < len(row)
        for quality in (static, regressed, static ** ((2 - score) / 2))
        for row in quality.argmax(2)
    )
