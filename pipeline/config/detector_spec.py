"""The arguments that rebuild a detector, as checkpoints and registered versions record them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from model.anchor_shapes import AnchorShapes


class DetectorSpec(BaseModel):
    """The arguments of `build_detector`. Fields with a default are missing in old records."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    neck: str
    num_classes: int
    image_size: int = Field(description="side of the square input, pixels")
    neck_channels: int | None = Field(default=None, description="None: chosen by the backbone")
    norm: str = "batch"
    anchor_base: float = Field(default=AnchorShapes.base, description="pixels, on stride 8")
    anchor_scales: tuple[float, ...] = AnchorShapes.scales
    anchor_ratios: tuple[float, ...] = Field(
        default=AnchorShapes.ratios, description="width / height"
    )

    @property
    def anchor_shapes(self) -> AnchorShapes:
        """Return the shapes of the anchors of a cell. Raises ValueError if they are impossible."""
        return AnchorShapes(self.anchor_base, self.anchor_scales, self.anchor_ratios)
