"""What every source of labelled images is turned into before it is written to shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.data.manifest import Problem
from pipeline.data.sample import Box


class Object(NamedTuple):
    """One labelled box: 0-based pixels, exclusive ends, as the source has it, unchecked."""

    name: str
    box: Box
    difficult: bool = False
    crowd: bool = False
    area: float | None = None  # None: that of the box


class Record(NamedTuple):
    """One image of a source. ``annotation`` names the file to blame for its boxes."""

    image_id: str
    file_name: str
    image: Path | bytes
    annotation: str
    size: tuple[int, int] | None  # width, height as the annotation says; None: it does not
    objects: list[Object]


@dataclass
class Source:
    """Labelled images to convert. Reading ``records`` adds to ``problems``."""

    kind: str
    name: str
    classes: list[str]
    records: Iterable[Record]
    total: int
    problems: list[Problem] = field(default_factory=list)
    category_ids: list[int] | None = None
