"""Decide once per source whether boxes refer to upright images or to the pixels as stored.

Some tools turn an image by its EXIF orientation before a person draws boxes, others do not, and no
format records which. Images that are turned sideways show it: their annotated sizes are those of
one of the two, and some of their boxes fit into one of the two only. What these images show is
applied to all images of the source, because the other orientations (mirrored, upside down) leave
the size as it is.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from PIL import ExifTags, Image

from pipeline.data.conversion.frames.annotated_size import has_shape
from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.sources.files import File
from pipeline.data.sources.record import Frame, Images, Record, Source, SourceImage
from pipeline.data.transforms.decode import FORMATS, TIFF_SIGNATURES, may_have_orientation

HEADER_BYTES = 2**16
MAX_HEADER_BYTES = 2**30
READERS, IMAGES_PER_READER = 8, 64
# So many of the sideways images must have boxes that fit one frame only to outweigh the sizes.
MIN_BOX_SHARE = 0.05
# A box may reach this far outside without being evidence.
FIT_PIXELS, FIT_SHARE = 2.0, 0.01
DESCRIPTIONS = {"stored": "the pixels as stored", "upright": "the upright images"}


class Header(NamedTuple):
    """EXIF orientation 2..8 of an image, and its width and height as stored."""

    orientation: int
    size: tuple[int, int]


@dataclass
class Evidence:
    """Images with an EXIF orientation, and for which frame the sideways ones speak."""

    oriented: int = 0
    sideways: int = 0
    by_size: Counter[Frame] = field(default_factory=Counter)
    by_boxes: Counter[Frame] = field(default_factory=Counter)

    def add(self, header: Header, read_record: Callable[[], Record]) -> None:
        """Add an image; only the record of a sideways image is read."""
        self.oriented += 1
        width, height = header.size
        if header.orientation < 5 or width == height:
            return
        self.sideways += 1
        record = read_record()
        sizes: dict[Frame, tuple[int, int]] = {"stored": header.size, "upright": (height, width)}
        if record.size is not None:
            shown = [frame for frame, size in sizes.items() if has_shape(record.size, size)]
            if len(shown) == 1:
                self.by_size[shown[0]] += 1
                # Boxes refer to the annotated size, which may be a multiple of the image's.
                other: Frame = "upright" if shown[0] == "stored" else "stored"
                sizes = {shown[0]: record.size, other: record.size[::-1]}
        shown = [frame for frame, size in sizes.items() if _boxes_fit(record, size)]
        if len(shown) == 1:
            self.by_boxes[shown[0]] += 1

    @property
    def size_frame(self) -> Frame | None:
        """Return the frame of the annotated sizes, None if they do not show it."""
        return _majority(self.by_size)

    @property
    def box_frame(self) -> Frame | None:
        """Return the frame of the boxes, None if nothing shows it."""
        return self._shown_by_boxes or self.size_frame

    @property
    def _shown_by_boxes(self) -> Frame | None:
        enough = sum(self.by_boxes.values()) >= MIN_BOX_SHARE * self.sideways
        return _majority(self.by_boxes) if enough else None

    def describe(self) -> tuple[ProblemKind, str]:
        """Return how certain the decision is, and a sentence about it for the user."""
        frame = self.box_frame or "stored"
        other: Frame = "upright" if frame == "stored" else "stored"
        text = f"{self.oriented} images have an EXIF orientation, {self.sideways} of them sideways"
        votes = self.by_boxes if self._shown_by_boxes else self.by_size
        if self.box_frame is None:
            reason = "without evidence"
        elif self._shown_by_boxes:
            reason = f"the boxes of {votes[frame]} sideways images fit only these"
        else:
            reason = f"the annotated sizes of {votes[frame]} sideways images are theirs"
        if votes[other]:
            reason += f"; {votes[other]} contradict"
        # Label Studio writes the stored size, but its boxes refer to the upright image.
        certain = self.box_frame and not votes[other]
        certain = certain and (frame == "upright" or bool(self._shown_by_boxes))
        return (
            "note" if certain else "suspicious",
            f"{text}; boxes are read as those of {DESCRIPTIONS[frame]} ({reason}); "
            f"--boxes-are {other} reads them the other way",
        )


@dataclass(frozen=True)
class FramedImage:
    """An image of a source with the frame that was decided for the whole source."""

    source: SourceImage
    upright: bool
    size_upright: bool

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
        """Return about how many bytes the sample takes."""
        return self.source.estimated_bytes

    def read_record(self) -> Record:
        """Read the annotations and set their frame."""
        record = self.source.read_record()
        return replace(record, upright=self.upright, size_upright=self.size_upright)


def settle_frame(source: Source, boxes_are: Frame | None = None) -> Source:
    """Return the source with the frame of its boxes: given, of its format, or by evidence.

    To find evidence the headers of all images are read, and the annotations of those that are
    turned sideways.
    """
    if source.boxes_are is not None and boxes_are in (None, source.boxes_are):
        return source
    if isinstance(source.images, Iterator):
        source.images = list(source.images)
    evidence = Evidence()
    if source.boxes_are is None:
        evidence = collect_evidence(source.images)
        if evidence.oriented == 0:
            return source
    frame = boxes_are or evidence.box_frame or "stored"
    size_frame = evidence.size_frame or frame
    problems = source.problems
    if boxes_are is None:
        kind, reason = evidence.describe()
        problems = [*problems, Problem(file=source.name, kind=kind, reason=reason)]
    if frame == size_frame == (source.boxes_are or "stored"):
        return replace(source, problems=problems)
    images = source.images
    framed = Images(lambda: _framed(images, frame == "upright", size_frame == "upright"))
    return replace(source, images=framed, problems=problems)


def _framed(
    images: Iterable[SourceImage], upright: bool, size_upright: bool
) -> Iterator[SourceImage]:
    for image in images:
        yield image if image.image is None else FramedImage(image, upright, size_upright)


def collect_evidence(images: Iterable[SourceImage]) -> Evidence:
    """Return what the headers and annotations of images show."""
    evidence = Evidence()
    remaining = iter(images)
    with ThreadPoolExecutor(READERS, "headers") as pool:
        while batch := list(islice(remaining, READERS * IMAGES_PER_READER)):
            parts = [batch[at::READERS] for at in range(READERS)]
            for part, headers in zip(parts, pool.map(_read_headers, parts), strict=True):
                for image, header in zip(part, headers, strict=True):
                    if header:
                        evidence.add(header, image.read_record)
    return evidence


def _read_headers(images: list[SourceImage]) -> list[Header | None]:
    return [_read_header(image.image) for image in images]


def _read_header(image: File | bytes | None) -> Header | None:
    """Return the header of an image with an EXIF orientation; None if unreadable or without one."""
    if image is None:
        return None
    try:
        start = image[:HEADER_BYTES] if isinstance(image, bytes) else image.read_start(HEADER_BYTES)
        # The metadata of a WebP is at its end, of a TIFF anywhere.
        whole = start[:4] in TIFF_SIGNATURES or (start[12:16] == b"VP8X" and bool(start[20] & 8))
        if not whole and not may_have_orientation(start):
            return None
        if not whole and (header := _parse_header(start)):
            return header if header.orientation != 1 else None
        data = image if isinstance(image, bytes) else image.read(MAX_HEADER_BYTES)
    except (OSError, ValueError):
        return None  # reported when the image is converted
    header = _parse_header(data) if may_have_orientation(data) else None
    return header if header and header.orientation != 1 else None


def _parse_header(data: bytes) -> Header | None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            width, height = image.size
    except Exception:  # damaged metadata raises nearly anything
        return None
    if orientation not in range(1, 9):
        return None
    if data[:4] in TIFF_SIGNATURES and orientation >= 5:  # Pillow gives the size of the upright one
        width, height = height, width
    return Header(orientation, (width, height))


def _boxes_fit(record: Record, size: tuple[int, int]) -> bool:
    if record.relative:
        return True
    limits = [side * (1 + FIT_SHARE) + FIT_PIXELS for side in size]
    ends = [item.box[2:] for item in record.objects if all(map(math.isfinite, item.box))]
    return all(x2 <= limits[0] and y2 <= limits[1] for x2, y2 in ends)


def _majority(votes: Counter[Frame]) -> Frame | None:
    if votes["stored"] == votes["upright"]:
        return None
    return "stored" if votes["stored"] > votes["upright"] else "upright"
