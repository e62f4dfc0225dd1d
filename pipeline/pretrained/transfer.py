"""Load the weights that fit into a detector, and report those that do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from model import Detector
from model.names import TIMM_PREFIX
from pipeline.errors import UserError
from pipeline.pretrained.class_heads import copy_class_rows, shared_classes
from pipeline.pretrained.weights import Weights
from pipeline.storage.document import Document

_BACKBONE, _HEADS = "backbone.", "heads."
# The layer with a row per class, which is the second one of a decoupled head.
_CLASS_ROWS = re.compile(r"heads\.classify\.\d+(\.1)?\.(weight|bias)")
# The backbone in torchvision's detectors, beside `backbone.fpn`, `head`, `rpn` and `roi_heads`.
_TORCHVISION_BODY = "backbone.body."
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_MAX_LISTED_NAMES = 6


class TransferReport(Document):
    """What became of every tensor, by its name in the detector, or in the source if unused."""

    source: str
    loaded: list[str]
    unused: list[str] = Field(description="only in the source")
    unused_modules: list[str] = Field(default=[], description="the same, whole modules by name")
    other_shape: list[str] = Field(description="shapes differ: left random")
    missing: list[str] = Field(description="only in the detector: left random")
    new_class_heads: list[str] = Field(
        description="for other classes: left random, except the rows of kept_classes"
    )
    kept_classes: list[str] = Field(
        default=[], description="classes with the same name in the source, if its list differs"
    )
    new_classes: list[str] = Field(
        default=[], description="classes that a source with class heads lacks"
    )
    source_classes: list[str] | None = Field(description="None if they are the detector's")
    source_anchors: str | None = Field(
        default=None, description="None if they are the detector's, or unknown"
    )

    def lines(self) -> list[str]:
        """Return the report in a few lines for a reader, whole modules by their name."""
        names = [*self.loaded, *self.other_shape, *self.missing, *self.new_class_heads]
        lines = [f"starting from {self.source}: {len(self.loaded)} of {len(names)} tensors loaded"]
        source_classes = _listed(self.source_classes or [])
        if self.kept_classes:
            made = f"; left random: {_listed(self.new_classes)}" if self.new_classes else ""
            lines.append(
                f"class heads: rows of classes with the same name are loaded: "
                f"{_listed(self.kept_classes)}{made}; the classes of the source are "
                f"{source_classes}"
            )
        elif self.new_class_heads:
            lines.append(f"class heads left random: the classes of the source are {source_classes}")
        if self.source_anchors:
            lines.append(
                f"the anchors of the source are others ({self.source_anchors}): its heads of the "
                "same shape are loaded, and have to learn the new anchors"
            )
        for title, modules in (
            ("other shape in the source, left random", _modules(self.other_shape, names)),
            ("not in the source, left random", _modules(self.missing, names)),
            ("unused", self.unused_modules),
        ):
            if modules:
                lines.append(f"{title}: {_listed(modules)}")
        return lines


@torch.no_grad()
def transfer(detector: Detector, weights: Weights, classes: Sequence[str]) -> TransferReport:
    """Copy into the detector every tensor that has the same name and shape there.

    The weights of a detector of this project go into all its parts, those of another network into
    the backbone, also from a detector of torchvision. If the classes differ, the rows of class
    heads are loaded whose classes have the same name. Raises UserError, naming the layers, if the
    backbone is another one or if nothing fits.
    """
    _check_backbone(detector, weights)
    own = detector.state_dict()
    has_same_classes = weights.classes is None or weights.classes == list(classes)
    has_same_anchors = weights.anchors in (None, detector.anchor_shapes)
    shared = [] if has_same_classes else shared_classes(classes, weights.classes or [])
    kept = False
    loaded, new_class_heads = list[str](), list[str]()
    unused: dict[str, str | None] = {}
    mismatches: dict[str, str] = {}
    for source_name, name in _own_names(detector, weights).items():
        tensor = weights.state[source_name]
        if name not in own:
            unused[source_name] = name
        elif not has_same_classes and _CLASS_ROWS.fullmatch(name):
            fits = copy_class_rows(own[name], tensor, list(classes), weights.classes or [])
            kept |= fits and name.endswith("weight")
            is_complete = fits and len(shared) == len(classes)
            (loaded if is_complete else new_class_heads).append(name)
        elif own[name].shape != tensor.shape:
            mismatches[name] = (
                f"{name} is {_shape(tensor)} in the source, {_shape(own[name])} in the detector"
            )
        else:
            own[name].copy_(tensor)
            loaded.append(name)
    known = {*loaded, *mismatches, *new_class_heads}
    # Old checkpoints lack the counts of batches, which nothing uses.
    missing = [n for n in own if n not in known and not n.endswith("num_batches_tracked")]
    _check_result(detector, weights.source, loaded, unused, mismatches, missing)
    if not kept:
        shared = []
    return TransferReport(
        source=weights.source,
        loaded=loaded,
        unused=list(unused),
        unused_modules=_modules(unused, weights.state),
        other_shape=list(mismatches),
        missing=missing,
        new_class_heads=new_class_heads,
        kept_classes=shared,
        new_classes=[] if has_same_classes else [name for name in classes if name not in shared],
        source_classes=None if has_same_classes else weights.classes,
        source_anchors=None if has_same_anchors else str(weights.anchors),
    )


def _own_names(detector: Detector, weights: Weights) -> dict[str, str | None]:
    """Return the name in the detector of each tensor of a source; None for parts it has not."""
    names = list(weights.state)
    own_name = detector.backbone.own_name
    if _is_torchvision_detector(weights):
        body = {name: name.removeprefix(_TORCHVISION_BODY) for name in names}
        return {n: _BACKBONE + own_name(inner) if inner != n else None for n, inner in body.items()}
    if any(name.startswith(_BACKBONE) for name in names):
        return {name: name for name in names}
    return {name: _BACKBONE + own_name(name) for name in names}


def _is_torchvision_detector(weights: Weights) -> bool:
    # A detector of this project on a network of timm has the prefix too, but also heads.
    state = weights.state
    return (
        weights.backbone is None
        and any(name.startswith(_TORCHVISION_BODY) for name in state)
        and not any(name.startswith(_HEADS) for name in state)
    )


def _check_backbone(detector: Detector, weights: Weights) -> None:
    own = detector.spec["backbone"]
    if weights.backbone not in (None, own):
        raise UserError(
            f"{weights.source} is a detector on {weights.backbone}, model.backbone is {own}; "
            "make them the same"
        )


def _check_result(
    detector: Detector,
    source: str,
    loaded: Sequence[str],
    unused: dict[str, str | None],
    mismatches: dict[str, str],
    missing: Sequence[str],
) -> None:
    """Raise UserError if the source has another backbone, or nothing that fits."""
    wrong = [text for name, text in mismatches.items() if name.startswith(_BACKBONE)]
    if wrong:
        listed = _listed(wrong, "; ")
        raise UserError(f"{source} is of another backbone; layers differ in shape: {listed}")
    if not any(name.startswith(_BACKBONE) for name in loaded):
        names = _listed(sorted(unused) or sorted(loaded))
        raise UserError(f"{source} has no tensor of this backbone; its names are: {names}")
    own = detector.spec["backbone"]
    lacking = [name for name in missing if name.startswith(_BACKBONE)]
    if not any(name.endswith("running_mean") for name in [*loaded, *unused]):
        # Of a network with group norms, which have no statistics.
        lacking = [name for name in lacking if not name.endswith(_STATISTICS)]
    if lacking:
        learned = [name for name in detector.state_dict() if not name.endswith(_STATISTICS)]
        listed = _listed(_modules([n for n in lacking if n in learned] or lacking, learned))
        raise UserError(f"{source} is of another network than {own}: it lacks {listed}")
    if surplus := _further_layers(detector, unused):
        raise UserError(f"{source} is of another network than {own}, with {_listed(surplus)} too")


def _further_layers(detector: Detector, unused: dict[str, str | None]) -> list[str]:
    """Return the source's tensors inside modules of the backbone that have no such layer.

    Layers beside those modules, such as a classifier, are expected.
    """
    if detector.spec["backbone"].startswith(TIMM_PREFIX):
        return []  # all of its layers are inside one module
    parts = tuple(f"{_BACKBONE}{name}." for name, _ in detector.backbone.named_children())
    return [
        source
        for source, name in unused.items()
        if name and name.startswith(parts) and not name.endswith(_STATISTICS)
    ]


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
