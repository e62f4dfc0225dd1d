"""Class heads: one row of weights per anchor of a cell and class, some of which can be kept."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def shared_classes(own: Sequence[str], source: Sequence[str]) -> list[str]:
    """Return the classes of both lists, in the order of ``own``."""
    return [name for name in own if name in source]


def copy_class_rows(
    own: Tensor, source: Tensor, own_classes: Sequence[str], source_classes: Sequence[str]
) -> bool:
    """Copy the rows of the classes that have the same name; return whether the rest agrees.

    The tensors are weights (K * C, F, 3, 3) or biases (K * C,) of a class head, for K anchors per
    cell and the C classes of each list. Nothing is copied if K or F differ.
    """
    own_rows, source_rows = _by_class(own, own_classes), _by_class(source, source_classes)
    if own_rows is None or source_rows is None:
        return False
    if (own_rows.shape[0], *own_rows.shape[2:]) != (source_rows.shape[0], *source_rows.shape[2:]):
        return False
    for name in shared_classes(own_classes, source_classes):
        own_rows[:, own_classes.index(name)].copy_(source_rows[:, source_classes.index(name)])
    return True


def _by_class(rows: Tensor, classes: Sequence[str]) -> Tensor | None:
    """View rows (K * C, ...) as (K, C, ...); None if C does not divide their number."""
    if rows.dim() == 0 or rows.shape[0] % len(classes):
        return None
    return rows.unflatten(0, (-1, len(classes)))  # (K, C, ...)
