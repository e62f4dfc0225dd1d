"""Taking over what fits of some weights into a detector, and saying what did not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from model import Detector
from pipeline.errors import UserError
from pipeline.pretrained.read import Weights

_BACKBONE, _CLASSIFY = "backbone.", "heads.classify."
_LISTED = 6


@dataclass
class TransferReport:
    """What became of every tensor, by name; names as here where they are known here."""

    source: str
    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """There, but not here."""
    other_shape: list[str] = field(default_factory=list)
    """Here and there, in different shapes: left random."""
    missing: list[str] = field(default_factory=list)
    """Here, but not there: left random."""
    remade: list[str] = field(default_factory=list)
    """Heads of other classes: left random."""
    classes: list[str] | None = None
    """The classes there, where they differ from the ones here."""

    def lines(self) -> list[str]:
        """The report for a reader: one line for each thing that is worth one."""
        names = [*self.used, *self.other_shape, *self.missing, *self.remade]
        lines = [f"starting from {self.source}: {len(self.used)} of {len(names)} tensors taken"]
        if self.remade:
            lines.append(
                f"class heads made anew: the classes there are {', '.join(self.classes or [])}"
            )
        for title, group, among in (
            ("of another shape there, left random", self.other_shape, names),
            ("not there, left random", self.missing, names),
            ("not used", self.unused, [*self.unused, *self.used]),
        ):
            if group:
                lines.append(f"{title}: {_listed(_layers(group, among))}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """All names, for a file."""
        return asdict(self)


@torch.no_grad()
def transfer(detector: Detector, weights: Weights, classes: Sequence[str]) -> TransferReport:
    """Copy into the detector every tensor of the same name and shape.

    A whole detector gives all its parts, another network its backbone. Class heads are taken only
    by a detector of the same classes. Raises UserError naming the layers where the backbone is
    another one, or nothing fits.
    """
    _check_backbone(detector, weights)
    own = detector.state_dict()
    report = TransferReport(weights.source)
    whole = any(name.startswith(_BACKBONE) for name in weights.state)
    if weights.classes is not None and weights.classes != list(classes):
        report.classes = weights.classes
    shapes = {}
    for published, tensor in weights.state.items():
        name = published if whole else _BACKBONE + detector.backbone.own_name(published)
        if name not in own:
            report.unused.append(published)
        elif report.classes is not None and name.startswith(_CLASSIFY):
            report.remade.append(name)
        elif own[name].shape != tensor.shape:
            report.other_shape.append(name)
            shapes[name] = f"{name} is {_shape(tensor)} there, {_shape(own[name])} here"
        else:
            own[name].copy_(tensor)
            report.used.append(name)
    known = {*report.used, *report.other_shape, *report.remade}
    # Old checkpoints do not count batches; nothing depends on it.
    report.missing = [n for n in own if n not in known and not n.endswith("num_batches_tracked")]
    _check_result(report, shapes)
    return report


def _check_backbone(detector: Detector, weights: Weights) -> None:
    here = detector.spec["backbone"]
    there = here if weights.spec is None else weights.spec["backbone"]
    if here != there:
        raise UserError(
            f"{weights.source} is a detector on {there}, model.backbone is {here}; "
            "make them the same"
        )


def _check_result(report: TransferReport, shapes: dict[str, str]) -> None:
    wrong = [shapes[name] for name in report.other_shape if name.startswith(_BACKBONE)]
    if wrong:
        listed = _listed(wrong, "; ")
        raise UserError(f"{report.source} is of another backbone; layers differ in shape: {listed}")
    if not any(name.startswith(_BACKBONE) for name in report.used):
        there = _listed(sorted(report.unused or report.used))
        raise UserError(f"{report.source} has no tensor of this backbone; its names are: {there}")


def _layers(names: Iterable[str], among: Collection[str]) -> list[str]:
    """Names shortened to the modules all of whose tensors are meant."""
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
    more = len(items) - _LISTED
    return separator.join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
