"""Shard sets, order, augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipeline.config.base import Probability, Section


class DataConfig(Section):
    """Shard sets, how samples are read and how they are augmented."""

    train: str | None = Field(
        None,
        description="shard set to train on: a folder, or an http, https or s3 address",
    )
    val: str | None = Field(
        None,
        description="shard set that selects the best checkpoint; none: the last one is kept",
    )
    test: str | None = Field(None, description="shard set scored once, at the end")
    parts: int = Field(
        64,
        ge=1,
        le=65536,
        description="parts P of the global order; at least the world size",
    )
    window: int = Field(
        4,
        ge=1,
        le=1024,
        description="shards shuffled together in sets over 65,536 samples",
    )
    loader_workers: int = Field(
        1,
        ge=0,
        le=64,
        description="loader processes per rank; 0 decodes in the training process",
    )
    prefetch: int = Field(4, ge=1, le=64, description="batches each loader process keeps ready")
    cache: str | None = Field(
        None,
        min_length=1,
        description="folder on each node for shards that are read from elsewhere; "
        "default: ~/.cache/guidance-train/shards",
    )
    cache_gib: float = Field(
        32.0, gt=0.0, description="most GiB in that folder; the least recently used go first"
    )
    retries: int = Field(
        8,
        ge=0,
        le=50,
        description="how often a transfer is tried again, after 0.5 s, 1 s, 2 s, ... up to 30 s",
    )
    fit: Literal["stretch", "letterbox"] = Field(
        "stretch",
        description="how images meet the square input, in evaluation too: stretched, or with "
        "their aspect kept and colour beside them",
    )
    sizes: tuple[int, ...] = Field(
        (),
        description="input sides that training changes between, pixels, divisible by 64; "
        "none: model.image_size alone. Evaluation uses model.image_size",
    )
    size_steps: int = Field(10, ge=1, description="steps until another of data.sizes is drawn")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    flip_vertical: Probability = Field(
        0.0, description="probability of a vertical flip, for images without an up"
    )
    crop: Probability = Field(0.0, description="probability of an IoU-constrained random crop")
    zoom_out: Probability = Field(0.0, description="probability of placing the image on a canvas")
    zoom_out_max: float = Field(3.0, ge=1.0, le=8.0, description="largest canvas, in image sides")
    photometric: Probability = Field(0.0, description="probability of a colour change")
    mosaic: Probability = Field(
        0.0, description="probability of setting the image in one of four tiles"
    )
    mixup: Probability = Field(
        0.0, description="probability of blending the image with another one"
    )
    max_bad_fraction: Probability = Field(
        0.01,
        description="share of unreadable samples above which training stops (and over 10)",
    )

    @field_validator("sizes")
    @classmethod
    def _divisible(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for size in value:
            if not 64 <= size <= 4096 or size % 64:
                raise ValueError(f"{size} is no input side; give multiples of 64 up to 4096")
        if value and min(value) < 512 <= max(value):
            raise ValueError(
                f"{list(value)}: detectors have 4 levels below 512 and 5 from there; "
                "stay on one side"
            )
        return value
