"""What every source of labelled images is turned into before it is written to shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pipeline.data.shards.manifest import Problem
from pipeline.data.shards.sample import Box
from pipeline.data.sources.files import File


class Object(NamedTuple):
    """One labelled box: 0-based pixels, exclusive ends, as the source has it, unchecked."""

    name: str
    box: Box
    difficult: bool = False
    crowd: bool = False
    area: float | None = None  # None: that of the box


@dataclass(frozen=True)
class Record:
    """One image of a source, read. ``annotation`` names the file to blame for its boxes.

    Boxes are fractions of the image's width and height if ``relative``. ``upright`` tells that they
    mean the picture as its EXIF orientation turns it; else they mean the pixels as stored, unless
    the size says otherwise. Without an ``image`` the record stands for one that was given up, for
    the reason among its ``problems``.
    """

    image_id: str
    file_name: str
    image: File | bytes | None
    annotation: str
    size: tuple[int, int] | None = None  # width, height as the annotation says; None: it does not
    objects: list[Object] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    relative: bool = False
    upright: bool = False


class Item(Protocol):
    """An image of a source that is yet to be read, perhaps in another process.

    Its ``repr`` stands for all that it will be read from: equal ones give equal records.
    """

    @property
    def image_id(self) -> str:
        """Unlike that of every other image."""

    @property
    def file_name(self) -> str:
        """The image's name in the source."""

    @property
    def weight(self) -> int:
        """About how many bytes it will take in a shard."""

    def record(self) -> Record:
        """Read the annotations."""


@dataclass(frozen=True)
class Ready:
    """An item whose annotations have been read already."""

    ready: Record

    @property
    def image_id(self) -> str:
        """As the record has it."""
        return self.ready.image_id

    @property
    def file_name(self) -> str:
        """As the record has it."""
        return self.ready.file_name

    @property
    def weight(self) -> int:
        """Bytes of the image and about those of its JSON."""
        image = self.ready.image
        size = len(image) if isinstance(image, bytes) else image.size if image else 0
        return size + label_weight(len(self.ready.objects))

    def record(self) -> Record:
        """The record."""
        return self.ready


def label_weight(objects: int) -> int:
    """About how many bytes a sample takes in a shard beside its image: headers, padding, JSON."""
    return 1792 + 64 * objects


def given_up(image_id: str, file: str, reason: str) -> Ready:
    """An item that stands for an image that cannot be used."""
    problem = Problem(file=file, kind="image skipped", reason=reason)
    return Ready(Record(image_id, file, None, file, problems=[problem]))


@dataclass
class Source:
    """Labelled images to convert. ``problems`` are those of the source as a whole."""

    kind: str
    name: str
    classes: list[str]
    records: Iterable[Item]
    total: int
    problems: list[Problem] = field(default_factory=list)
    category_ids: list[int] | None = None
