"""Counts over the objects of a source that show whether it is read as it is meant."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from pipeline.data.shards.sample import Box
from pipeline.data.sources.record import BoxLayout

# Boxes in pixels that end within so many of the top left corner are fractions of the image size,
# and such fractions were divided by the image size twice.
MAX_FRACTION = 1.5
MIN_SIDE_OF_PERCENT = 200  # of images in which boxes up to 100 may be percentages
# A box reaches outside clearly by so much of the image's side, and at least by so many pixels.
CLEARLY_OUTSIDE, CLEARLY_OUTSIDE_PIXELS = 0.01, 2.0


class ObjectCounts(BaseModel):
    """Counts over objects, which are added up image by image and shard by shard."""

    model_config = ConfigDict(extra="forbid")

    excluded: Counter[str] = Field(
        default_factory=Counter, description="by class: objects that are not of the chosen classes"
    )
    kept: int = Field(default=0, description="objects in the set; one in several tiles counts once")
    crowd: int = Field(default=0, description="those of them that are crowd regions")
    crowd_boxes: int = Field(default=0, description="crowd regions of the set, in each tile")
    replaced_areas: int = Field(default=0, description="areas that no object can have")
    boxes: int = Field(default=0, description="boxes of finite numbers")
    absolute: int = Field(default=0, description="those in pixels")
    near_corner: int = Field(default=0, description="boxes that end at the top left corner")
    near_percent: int = Field(default=0, description="boxes in pixels that look like percentages")
    outside: int = Field(default=0, description="boxes that reach clearly outside their image")
    zero_corners: int = Field(default=0, description="boxes that begin before the first pixel")
    at_start: int = Field(default=0, description="boxes that begin at the border of their image")
    at_end: int = Field(default=0, description="boxes that end at the border of their image")
    swapped: int = Field(default=0, description="boxes whose corners were exchanged")
    fit_as: Counter[BoxLayout] = Field(
        default_factory=Counter, description="by layout: boxes that fit if it is the one meant"
    )

    def update(self, other: ObjectCounts) -> None:
        """Add other counts."""
        self.excluded.update(other.excluded)
        self.fit_as.update(other.fit_as)
        for name in type(self).model_fields.keys() - {"excluded", "fit_as"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add_box(self, box: Box, width: int, height: int, layout: BoxLayout, relative: bool) -> None:
        """Count a box in pixels, which a source wrote in that layout."""
        self.boxes += 1
        x1, y1, x2, y2 = box
        self.near_corner += x1 < x2 <= MAX_FRACTION and y1 < y2 <= MAX_FRACTION
        if not relative:
            self.absolute += 1
            self.near_percent += max(x2, y2) <= 100 and min(width, height) >= MIN_SIDE_OF_PERCENT
        across = max(CLEARLY_OUTSIDE_PIXELS, CLEARLY_OUTSIDE * width)
        down = max(CLEARLY_OUTSIDE_PIXELS, CLEARLY_OUTSIDE * height)
        inside = (-across, -down, width + across, height + down)
        self.outside += x1 < x2 and y1 < y2 and not _is_inside(box, inside)
        self.at_start += x1 == 0 or y1 == 0
        self.at_end += x2 == width or y2 == height
        if layout == "corners":
            return
        first = (x1, y1) if layout == "xywh" else ((x1 + x2) / 2, (y1 + y2) / 2)
        self._count_readings((*first, x2 - x1, y2 - y1), inside)

    def add_written_corners(self, written: Box, width: int, height: int) -> None:
        """Count a box of corners as it was written, before swapped ones were exchanged."""
        self._count_readings(written, (-1, -1, width + 1, height + 1))

    def _count_readings(self, written: Box, inside: Box) -> None:
        """Count the layouts in which four numbers are a box inside."""
        first, second, third, fourth = written
        readings: dict[BoxLayout, Box] = {
            "corners": (first, second, third, fourth),
            "xywh": (first, second, first + third, second + fourth),
            "cxcywh": (
                first - third / 2,
                second - fourth / 2,
                first + third / 2,
                second + fourth / 2,
            ),
        }
        self.fit_as.update(name for name, read in readings.items() if _is_inside(read, inside))


def _is_inside(box: Box, bounds: Box) -> bool:
    return bounds[0] <= box[0] < box[2] <= bounds[2] and bounds[1] <= box[1] < box[3] <= bounds[3]
