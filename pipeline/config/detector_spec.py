"""The arguments that rebuild a detector, as checkpoints and registered versions record them."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from model.anchor_shapes import AnchorShapes

# Recorded only if they are not the default, so that earlier versions of this project still read the
# records of all detectors that they can build.
_ADDED = ("neck_variant", "anchor_clamp", "strides", "head", "activation")


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
    neck_variant: str = "compact"
    anchor_clamp: bool = Field(default=False, description="sides limited to that of the input")
    strides: tuple[int, ...] = Field(default=(), description="of the levels; empty: by the size")
    head: str = "plain"
    activation: str = Field(default="relu", description="of neck and heads")

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields, without added ones at their default."""
        content: dict[str, Any] = serialize(self)
        for name in _ADDED:
            if getattr(self, name) == type(self).model_fields[name].default:
                del content[name]
        return content

    @property
    def anchor_shapes(self) -> AnchorShapes:
        """Return the shapes of the anchors of a cell. Raises ValueError if they are impossible."""
        return AnchorShapes(
            self.anchor_base,
            self.anchor_scales,
            self.anchor_ratios,
            self.anchor_clamp,
            self.strides,
        )
