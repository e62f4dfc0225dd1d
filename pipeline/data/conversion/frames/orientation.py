"""Decide once per source whether boxes refer to upright images or to the pixels as stored.

Some tools turn an image by its EXIF orientation before a person draws boxes, others do not, and no
format records which. Images that are turned sideways show it: their annotated sizes are those of
one of the two, and some of their boxes fit into one of the two only. What these images show is
applied to all images of the source, because the other orientations (mirrored, upside down) leave
the size as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from pipeline.data.conversion.frames.annotated_size import has_shape
from pipeline.data.conversion.frames.headers import Header, read_headers
from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.sources.record import Frame, Images, Record, Source, SourceImage, WrappedImage
from pipeline.progress import Progress

# So many of the sideways images must have boxes that fit one frame only to outweigh the sizes.
MIN_BOX_SHARE = 0.05
# A box may reach this far outside without being evidence.
FIT_PIXELS, FIT_SHARE = 2.0, 0.01
DESCRIPTIONS = {"stored": "the pixels as stored", "upright": "the upright images"}


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
    def is_certain(self) -> bool:
        """Return whether the images agree, and show what sizes of the stored pixels do not.

        Label Studio writes those sizes, but its boxes refer to the upright images.
        """
        if self.box_frame is None or min(self._votes["stored"], self._votes["upright"]):
            return False
        return self.box_frame == "upright" or self._shown_by_boxes is not None

    @property
    def _votes(self) -> Counter[Frame]:
        return self.by_boxes if self._shown_by_boxes else self.by_size

    @property
    def _shown_by_boxes(self) -> Frame | None:
        enough = sum(self.by_boxes.values()) >= MIN_BOX_SHARE * self.sideways
        return _majority(self.by_boxes) if enough else None

    def describe(self) -> tuple[ProblemKind, str]:
        """Return how certain the decision is, and a sentence about it for the user."""
        frame = self.box_frame or "stored"
        other: Frame = "upright" if frame == "stored" else "stored"
        text = f"{self.oriented} images have an EXIF orientation, {self.sideways} of them sideways"
        votes = self._votes
        if self.box_frame is None:
            reason = "without evidence"
        elif self._shown_by_boxes:
            reason = f"the boxes of {votes[frame]} sideways images fit only these"
        else:
            reason = f"the annotated sizes of {votes[frame]} sideways images are theirs"
        if votes[other]:
            reason += f"; {votes[other]} contradict"
        return (
            "note" if self.is_certain else "suspicious",
            f"{text}; boxes are read as those of {DESCRIPTIONS[frame]} ({reason}); "
            f"--boxes-are {other} reads them the other way",
        )


@dataclass(frozen=True)
class FramedImage(WrappedImage):
    """An image of a source with the frame that was decided for the whole source."""

    upright: bool
    size_upright: bool

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
        evidence = collect_evidence(source)
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


def collect_evidence(source: Source) -> Evidence:
    """Return what headers and annotations show: of the images, if needed also of the others."""
    evidence = Evidence()
    for images, total in ((source.images, source.total), (source.other_images, 0)):
        if images is source.other_images and (evidence.oriented == 0 or evidence.is_certain):
            break
        progress = Progress("reading headers", total)
        for image, header in read_headers(images, progress):
            evidence.add(header, image.read_record)
        progress.finish()
    return evidence


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
