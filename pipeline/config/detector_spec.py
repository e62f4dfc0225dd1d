"""The arguments that rebuild a detector, as checkpoints and registered versions record them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DetectorSpec(BaseModel):
    """The arguments of `build_detector`. Fields with a default are missing in old records."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    neck: str
    num_classes: int
    image_size: int = Field(description="side of the square input, pixels")
    neck_channels: int | None = Field(default=None, description="None: chosen by the backbone")
    norm: str = "batch"
