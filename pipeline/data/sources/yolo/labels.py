"""Parse label files of YOLO.

A line is ``class cx cy w h`` in fractions of the image as its EXIF orientation turns it, with
keypoints behind or not, or ``class x1 y1 x2 y2 ...``, a polygon, which is replaced by its bounding
box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import (
    MAX_LABEL_BYTES,
    File,
    FileError,
    read_file,
    unreadable_format,
)
from pipeline.data.sources.record import Object, Record, estimate_label_bytes
from pipeline.data.sources.values import decode_text

# A coordinate further above 1 than rounding explains is in pixels, by mistake.
MAX_COORDINATE = 1.01


@dataclass(frozen=True)
class YoloImage:
    """An image whose label file is read when it is converted."""

    image_id: str
    file_name: str
    image: File
    labels_name: str
    labels: File | None
    names: tuple[tuple[int, str], ...]
    keypoints: bool

    @property
    def estimated_bytes(self) -> int:
        """Return the bytes of the image and about those of its JSON.

        An object takes about 40 bytes of text.
        """
        return self.image.size + estimate_label_bytes(self.labels.size // 40 if self.labels else 0)

    def read_record(self) -> Record:
        """Read the labels."""
        file, problems = self.labels_name, list[Problem]()
        objects: list[Object] = []
        unreadable = unreadable_format(self.file_name, self.image)
        if self.labels is not None:
            try:
                text = decode_text(read_file(self.labels, MAX_LABEL_BYTES))
            except (FileError, UnicodeDecodeError) as error:
                fault = "not text in UTF-8" if isinstance(error, UnicodeDecodeError) else error
                reason = f"{file} cannot be read: {fault}"
                problem = Problem(file=self.file_name, kind="image skipped", reason=reason)
                return Record(self.image_id, self.file_name, None, file, problems=[problem])
            objects = self._objects(text, problems)
        elif not unreadable:
            reason = f"label file {file} not found; treated as an image without objects"
            problems.append(Problem(file=self.file_name, kind="repaired", reason=reason))
        if unreadable:  # whatever it has: the first image in a raw file is only a preview
            problem = Problem(file=self.file_name, kind="image skipped", reason=unreadable)
            problems.append(problem)
        return Record(
            self.image_id,
            self.file_name,
            None if unreadable else self.image,
            file,
            None,
            objects,
            problems,
            relative=True,
            upright=True,
            layout="cxcywh",
        )

    def _objects(self, text: str, problems: list[Problem]) -> list[Object]:
        names, objects = dict(self.names), []
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            try:
                objects.append(_object(fields, names, self.keypoints))
            except ValueError as error:
                reason = f"line {number}: {error}"
                problems.append(Problem(file=self.labels_name, kind="box dropped", reason=reason))
        return objects


def _object(fields: list[str], names: dict[int, str], keypoints: bool) -> Object:
    values = []
    for field in fields:
        try:
            values.append(float(field))
        except ValueError:
            raise ValueError(f"{field[:40]!r} is not a number") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    number, *coordinates = values
    if number != int(number) or int(number) not in names:
        raise ValueError(f"unknown class {fields[0]}; known: {min(names)} to {max(names)}")
    polygon = len(coordinates) >= 6 and len(coordinates) % 2 == 0 and not keypoints
    if len(coordinates) < 4 or (len(coordinates) > 4 and not polygon and not keypoints):
        raise ValueError(f"{len(fields)} values; expected class, cx, cy, w, h or a polygon")
    if max(abs(value) for value in (coordinates if polygon else coordinates[:4])) > MAX_COORDINATE:
        raise ValueError("a coordinate is over 1; coordinates are fractions of the image size")
    if polygon:
        xs, ys = coordinates[::2], coordinates[1::2]
        box = min(xs), min(ys), max(xs), max(ys)
    else:
        cx, cy, width, height = coordinates[:4]
        box = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    return Object(names[int(number)], box)
