"""The annotation of one image in a shard: its ``KEY.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from pipeline.data.transforms.decode import MAX_PIXELS

Box = tuple[float, float, float, float]
Side = Annotated[int, msgspec.Meta(gt=0, le=MAX_PIXELS)]


class SampleError(ValueError):
    """Data that is not a valid sample; the message says why."""


class Tile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Where a sample was cut from: id and size of the picture, and the top left corner in it."""

    image_id: str
    x: int
    y: int
    width: Side
    height: Side


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Size and objects of one image.

    Boxes are 0-based float pixels x1, y1, x2, y2 with exclusive ends, inside the image and not
    empty. Crowd boxes are regions that training ignores; difficult objects train. `make` and
    `from_json` check types and sizes; the constructor does not.
    """

    image_id: str
    file_name: str
    width: Side
    height: Side
    boxes: list[Box]
    labels: list[int]
    difficult: list[bool]
    crowd: list[bool]
    area: list[float]
    tile: Tile | None = None  # None: the sample is a whole picture

    def __post_init__(self) -> None:
        count, width, height = len(self.boxes), self.width, self.height
        if not (
            len(self.labels) == len(self.difficult) == len(self.crowd) == len(self.area) == count
        ):
            raise ValueError("boxes, labels, difficult, crowd and area differ in length")
        for x1, y1, x2, y2 in self.boxes:
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(f"box {[x1, y1, x2, y2]} is empty or extends beyond the image")

    @classmethod
    def make(
        cls,
        *,
        image_id: str,
        file_name: str,
        width: int,
        height: int,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[int],
        difficult: Sequence[bool],
        crowd: Sequence[bool],
        area: Sequence[float],
        tile: Tile | None = None,
    ) -> Sample:
        """Return a checked sample; integers are accepted as floats. Raises SampleError."""
        fields = {
            "image_id": image_id,
            "file_name": file_name,
            "width": width,
            "height": height,
            "boxes": boxes,
            "labels": labels,
            "difficult": difficult,
            "crowd": crowd,
            "area": area,
            "tile": tile,
        }
        try:
            return msgspec.convert(fields, cls)
        except ValueError as error:
            raise SampleError(str(error)) from None

    @classmethod
    def from_json(cls, data: bytes) -> Sample:
        """Return the sample in its JSON. Raises SampleError."""
        try:
            return _decode(data)
        except ValueError as error:  # from msgspec, or not UTF-8
            raise SampleError(f"damaged JSON: {error}") from None

    def objects(self) -> np.ndarray:
        """Return the boxes (M,4) that are not crowd regions, float64."""
        boxes = np.array(self.boxes, np.float64).reshape(-1, 4)
        return boxes[~np.array(self.crowd, bool)] if any(self.crowd) else boxes

    def object_labels(self) -> list[int]:
        """Return the labels of its objects that are not crowd regions, each once, ascending."""
        pairs = zip(self.labels, self.crowd, strict=True)
        return sorted({label for label, crowd in pairs if not crowd})

    def to_json(self) -> bytes:
        """Return the canonical JSON of the sample. Raises ValueError if an area is not finite."""
        tree = msgspec.structs.asdict(self)
        del tree["tile"]
        if self.tile:
            tree["tile"] = msgspec.structs.asdict(self.tile)
        return json.dumps(tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


_decode = msgspec.json.Decoder(Sample).decode
