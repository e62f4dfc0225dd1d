"""What is known of one image in a shard: its ``KEY.json``."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, model_validator

Box = tuple[float, float, float, float]


class Sample(BaseModel):
    """Size and objects of one image.

    Boxes are 0-based float pixels x1, y1, x2, y2 with exclusive ends, inside the image and not
    empty. Crowd boxes are regions that training ignores; difficult objects train.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image_id: str
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    boxes: list[Box]
    labels: list[int]
    difficult: list[bool]
    crowd: list[bool]
    area: list[float]

    @model_validator(mode="after")
    def _consistent(self) -> Sample:
        columns = (self.labels, self.difficult, self.crowd, self.area)
        if any(len(column) != len(self.boxes) for column in columns):
            raise ValueError("boxes, labels, difficult, crowd and area differ in length")
        for x1, y1, x2, y2 in self.boxes:
            if not (0 <= x1 < x2 <= self.width and 0 <= y1 < y2 <= self.height):
                raise ValueError(f"box {[x1, y1, x2, y2]} is empty or leaves the image")
        return self

    def to_json(self) -> bytes:
        """The one byte sequence that stands for this sample in a shard."""
        return json.dumps(self.model_dump(), separators=(",", ":"), ensure_ascii=False).encode()
