"""The common form of every source: labelled images, to be written to shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pipeline.data.shards.problems import Problem
from pipeline.data.shards.sample import Box
from pipeline.data.sources.files import File

# What boxes refer to: the pixels as stored, or the image as its EXIF orientation turns it.
Frame = Literal["stored", "upright"]
# How a source writes boxes: two corners, the top left corner and the size, the centre and the size.
BoxLayout = Literal["corners", "xywh", "cxcywh"]


class Object(NamedTuple):
    """One labelled box: 0-based pixels, exclusive ends, unchecked, as the source gives it."""

    name: str
    box: Box
    difficult: bool = False
    crowd: bool = False
    area: float | None = None  # None: the area of the box


@dataclass(frozen=True)
class Record:
    """One image of a source with its annotations.

    ``annotation_file`` is named in reports on its boxes. Boxes are fractions of the image's width
    and height if ``relative``. If ``upright``, boxes refer to the image as its EXIF orientation
    turns it; otherwise to the pixels as stored. ``size_upright`` says the same of ``size``. A
    record without an ``image`` stands for a skipped image; ``problems`` gives the reason. Of a
    ``layout`` other than corners it is checked whether corners were meant. ``zero_corners`` counts
    boxes that begin at 0 in a format whose first pixel is 1; ``box`` has them at the border.
    ``swapped`` counts boxes whose corners were exchanged; ``written_corners`` has all as written.
    """

    image_id: str
    file_name: str
    image: File | bytes | None
    annotation_file: str
    size: tuple[int, int] | None = None  # annotated width and height; None: not given
    objects: list[Object] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    relative: bool = False
    upright: bool = False
    size_upright: bool | None = None  # None: as the boxes
    layout: BoxLayout = "corners"
    zero_corners: int = 0
    swapped: int = 0
    written_corners: list[Box] = field(default_factory=list)


class SourceImage(Protocol):
    """An image of a source whose annotations are read later, perhaps in another process.

    Its ``repr`` identifies everything that the record is read from: images with the same ``repr``
    give the same record.
    """

    @property
    def image_id(self) -> str:
        """Return the id, which is unique within the source."""

    @property
    def file_name(self) -> str:
        """Return the name of the image file in the source."""

    @property
    def image(self) -> File | bytes | None:
        """Return the image file; None if the image is skipped, or made when it is converted."""

    @property
    def estimated_bytes(self) -> int:
        """Return about how many bytes the sample takes in a shard."""

    def read_record(self) -> Record:
        """Read the annotations."""


@dataclass(frozen=True)
class ParsedImage:
    """An image whose annotations have been read already."""

    record: Record

    @property
    def image_id(self) -> str:
        """Return the id of the record."""
        return self.record.image_id

    @property
    def file_name(self) -> str:
        """Return the file name of the record."""
        return self.record.file_name

    @property
    def image(self) -> File | bytes | None:
        """Return the image file of the record."""
        return self.record.image

    @property
    def estimated_bytes(self) -> int:
        """Return the bytes of the image and about those of its JSON."""
        image = self.record.image
        size = len(image) if isinstance(image, bytes) else image.size if image else 0
        return size + estimate_label_bytes(len(self.record.objects))

    def read_record(self) -> Record:
        """Return the record."""
        return self.record


@dataclass(frozen=True)
class WrappedImage:
    """Base of images that change the record of another one when it is read."""

    source: SourceImage

    @property
    def image_id(self) -> str:
        """Return the id of the image."""
        return self.source.image_id

    @property
    def file_name(self) -> str:
        """Return the name of the image file."""
        return self.source.file_name

    @property
    def image(self) -> File | bytes | None:
        """Return the image file."""
        return self.source.image

    @property
    def estimated_bytes(self) -> int:
        """Return about how many bytes the sample takes in a shard."""
        return self.source.estimated_bytes


def estimate_label_bytes(objects: int) -> int:
    """Return about how many bytes a sample takes beside its image: headers, padding and JSON."""
    return 1792 + 64 * objects


def skipped_image(image_id: str, file: str, reason: str) -> ParsedImage:
    """Return the entry for an image that cannot be used."""
    problem = Problem(file=file, kind="image skipped", reason=reason)
    return ParsedImage(Record(image_id, file, None, file, problems=[problem]))


@dataclass(frozen=True)
class Images:
    """Images that are listed again by each iteration, so that they need no memory."""

    list_images: Callable[[], Iterator[SourceImage]]

    def __iter__(self) -> Iterator[SourceImage]:
        return self.list_images()


@dataclass
class Source:
    """Labelled images to convert. ``problems`` concern the source as a whole.

    ``boxes_are`` is the frame of the boxes if the format defines it. ``other_images`` are in the
    data set, but not to be converted: they may show what those to be converted do not.
    """

    kind: str
    name: str
    classes: list[str]
    images: Iterable[SourceImage]
    total: int
    problems: list[Problem] = field(default_factory=list)
    category_ids: list[int] | None = None
    boxes_are: Frame | None = None
    other_images: Iterable[SourceImage] = ()
