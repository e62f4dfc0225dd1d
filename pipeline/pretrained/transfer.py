"""Load the weights that fit into a detector, and report those that do not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from model import Detector
from pipeline.errors import UserError
from pipeline.pretrained.read import Weights
from pipeline.storage.document import Document

_BACKBONE, _CLASS_HEADS = "backbone.", "heads.classify."
_MAX_LISTED_NAMES = 6


class TransferReport(Document):
    """What became of every tensor, by its name in the detector, or in the source if unused."""

    source: str
    loaded: list[str]
    unused: list[str] = Field(description="only in the source")
    other_shape: list[str] = Field(description="shapes differ: left random")
    missing: list[str] = Field(description="only in the detector: left random")
    new_class_heads: list[str] = Field(description="for other classes: left random")
    source_classes: list[str] | None = Field(description="None if they are the detector's")
    source_anchors: str | None = Field(
        default=None, description="None if they are the detector's, or unknown"
    )

    def lines(self) -> list[str]:
        """Return the report in a few lines for a reader, whole modules by their name."""
        names = [*self.loaded, *self.other_shape, *self.missing, *self.new_class_heads]
        lines = [f"starting from {self.source}: {len(self.loaded)} of {len(names)} tensors loaded"]
        if self.new_class_heads:
            classes = ", ".join(self.source_classes or [])
            lines.append(f"class heads left random: the classes of the source are {classes}")
        if self.source_anchors:
            lines.append(
                f"the anchors of the source are others ({self.source_anchors}): its heads of the "
                "same shape are loaded, and have to learn the new anchors"
            )
        for title, group, among in (
            ("other shape in the source, left random", self.other_shape, names),
            ("not in the source, left random", self.missing, names),
            ("unused", self.unused, [*self.unused, *self.loaded]),
        ):
            if group:
                lines.append(f"{title}: {_listed(_modules(group, among))}")
        return lines


@torch.no_grad()
def transfer(detector: Detector, weights: Weights, classes: Sequence[str]) -> TransferReport:
    """Copy into the detector every tensor that has the same name and shape there.

    The weights of a whole detector go into all its parts, those of another network into the
    backbone. Class heads are loaded only if the classes are the same. Raises UserError, naming the
    layers, if the backbone is another one or if nothing fits.
    """
    _check_backbone(detector, weights)
    own = detector.state_dict()
    has_same_classes = weights.classes is None or weights.classes == list(classes)
    has_same_anchors = weights.anchors in (None, detector.anchor_shapes)
    is_detector = any(name.startswith(_BACKBONE) for name in weights.state)
    loaded, unused, new_class_heads = list[str](), list[str](), list[str]()
    mismatches: dict[str, str] = {}
    for source_name, tensor in weights.state.items():
        name = source_name if is_detector else _BACKBONE + detector.backbone.own_name(source_name)
        if name not in own:
            unused.append(source_name)
        elif not has_same_classes and name.startswith(_CLASS_HEADS):
            new_class_heads.append(name)
        elif own[name].shape != tensor.shape:
            mismatches[name] = (
                f"{name} is {_shape(tensor)} in the source, {_shape(own[name])} in the detector"
            )
        else:
            own[name].copy_(tensor)
            loaded.append(name)
    known = {*loaded, *mismatches, *new_class_heads}
    _check_result(weights.source, loaded, unused, mismatches)
    return TransferReport(
        source=weights.source,
        loaded=loaded,
        unused=unused,
        other_shape=list(mismatches),
        # Old checkpoints lack the counts of batches, which nothing uses.
        missing=[n for n in own if n not in known and not n.endswith("num_batches_tracked")],
        new_class_heads=new_class_heads,
        source_classes=None if has_same_classes else weights.classes,
        source_anchors=None if has_same_anchors else str(weights.anchors),
    )


def _check_backbone(detector: Detector, weights: Weights) -> None:
    own = detector.spec["backbone"]
    if weights.backbone not in (None, own):
        raise UserError(
            f"{weights.source} is a detector on {weights.backbone}, model.backbone is {own}; "
            "make them the same"
        )


def _check_result(
    source: str, loaded: Sequence[str], unused: Sequence[str], mismatches: dict[str, str]
) -> None:
    wrong = [text for name, text in mismatches.items() if name.startswith(_BACKBONE)]
    if wrong:
        listed = _listed(wrong, "; ")
        raise UserError(f"{source} is of another backbone; layers differ in shape: {listed}")
    if not any(name.startswith(_BACKBONE) for name in loaded):
        names = _listed(sorted(unused or loaded))
        raise UserError(f"{source} has no tensor of this backbone; its names are: {names}")


def _modules(names: Iterable[str], among: Collection[str]) -> list[str]:
    """Return ``names``, with a module's name in place of its tensors where all are among them."""
    chosen, short = set(names), dict[str, None]()
    for name in sorted(chosen):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            inside = [n for n in among if n == prefix or n.startswith(f"{prefix}.")]
            if chosen.issuperset(inside):
                short[prefix] = None
                break
    return list(short)


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = len(items) - _MAX_LISTED_NAMES
    shown = separator.join(items[:_MAX_LISTED_NAMES])
    return shown + (f" and {more} more" if more > 0 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
