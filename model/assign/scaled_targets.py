"""Targets as in TaskAligned, for anchors that another assigner has chosen."""

import torch
from torch import Tensor

from ..options import TaskAlignedOptions
from .inputs import AssignInputs

ALPHA, BETA = TaskAlignedOptions.alpha, TaskAlignedOptions.beta


def scaled_targets(inputs: AssignInputs, gt_index: Tensor, quality: Tensor) -> Tensor:
    """Return t = s^ALPHA u^BETA of each positive, scaled per object to the object's highest u.

    s is the score of the object's class, u the IoU of the predicted box, `gt_index` (B, A) the
    object of each positive, -1 elsewhere. An object whose positives all have t = 0 keeps their
    `quality` (B, A). Returns (B, A), 0 where there is no positive.
    """
    num_anchors = gt_index.shape[1]
    slots = inputs.labels.numel() + 1  # the last one stands for no object
    # Positives of all images in one list, each with the slot of its object.
    position = _positions(gt_index)  # (N,)
    image, anchor = position // num_anchors, position % num_anchors  # (N,) each
    index = gt_index.flatten()[position]  # (N,)
    slot = torch.where(index >= 0, image * inputs.labels.shape[1] + index, slots - 1)  # (N,)
    s, u = inputs.score_and_iou(image, anchor, index.clamp(min=0))  # (N,) each
    # Alignment t by its highest value; s and u are divided first, so that no power vanishes.
    max_u = _maximum(u, slot, slots)  # (N,)
    t = _ratio(s, _maximum(s, slot, slots)).pow_(ALPHA) * _ratio(u, max_u).pow_(BETA)  # (N,)
    max_t = _maximum(t, slot, slots)  # (N,)
    scaled = torch.where(max_t > 0, _ratio(t, max_t) * max_u, quality.flatten()[position])
    target = torch.where(index >= 0, scaled, 0.0)  # (N,)
    return torch.zeros_like(quality).flatten().scatter_(0, position, target).view_as(quality)


def _positions(gt_index: Tensor) -> Tensor:
    """Return flat indices (N,) of the positives, or of all anchors where their number would have to
    be read from the device."""
    if torch.compiler.is_compiling() or gt_index.device.type != "cpu":
        return torch.arange(gt_index.numel(), device=gt_index.device)
    return (gt_index >= 0).flatten().nonzero().squeeze(1)


def _maximum(value: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Return, for each value (N,), the highest one of its slot."""
    return value.new_zeros(slots).scatter_reduce_(0, slot, value, "amax")[slot]


def _ratio(value: Tensor, maximum: Tensor) -> Tensor:
    """Return value / maximum (N,), 0 where both are 0."""
    return value / maximum.clamp(min=torch.finfo(value.dtype).tiny)
