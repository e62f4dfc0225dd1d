"""The section ``data``: shard sets, sample order and augmentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipeline.config.base import Probability, Section


class DataConfig(Section):
    """Shard sets, and how their samples are read and augmented."""

    train: str | None = Field(
        None,
        description="shard set to train on: a folder, or an http, https or s3 address",
    )
    val: str | None = Field(
        None,
        description="shard set that selects the best checkpoint; unset: the last one is used",
    )
    test: str | None = Field(None, description="shard set that is scored once, at the end")
    parts: int = Field(
        64,
        ge=1,
        le=65536,
        description="number of parts P of the global sample order; at least the number of workers, "
        "and best a divisor of train.batch_size",
    )
    window: int = Field(
        4,
        ge=1,
        le=1024,
        description="shards shuffled together, in sets of more than 65,536 samples",
    )
    repeat_threshold: Probability = Field(
        0.0,
        description="images with a class that a smaller fraction of images has are drawn more "
        "often, by sqrt(threshold / fraction), and all others less (repeat-factor sampling); 0: "
        "each image once per epoch",
    )
    loader_workers: int = Field(
        1,
        ge=0,
        le=64,
        description="loader processes per rank; 0 decodes in the training process",
    )
    prefetch: int = Field(
        4, ge=1, le=64, description="batches that each loader process keeps ready"
    )
    cache: str | None = Field(
        None,
        min_length=1,
        description="folder on each node that caches remote shards; "
        "unset: ~/.cache/guidance-train/shards",
    )
    cache_gib: float = Field(
        32.0,
        gt=0.0,
        description="maximum size of data.cache in GiB; the least recently used shards are "
        "evicted first",
    )
    retries: int = Field(
        8,
        ge=0,
        le=50,
        description="retries of a failed transfer, after 0.5 s, 1 s, 2 s, ... up to 30 s",
    )
    fit: Literal["stretch", "letterbox"] = Field(
        "stretch",
        description="how images are resized to the square input, in training and evaluation: "
        "stretched, or with their aspect ratio kept and padded",
    )
    sizes: tuple[int, ...] = Field(
        (),
        description="input sides for multi-scale training, in pixels, divisible by 64; "
        "empty: model.image_size only. Evaluation always uses model.image_size",
    )
    size_steps: int = Field(10, ge=1, description="steps between two draws from data.sizes")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    flip_vertical: Probability = Field(
        0.0, description="probability of a vertical flip, for images without a top side"
    )
    augment_variant: Literal["ssd", "published"] = Field(
        "ssd",
        description="how crop, zoom-out and colour change: like SSD, or published: as the authors "
        "of the paper have them",
    )
    crop: Probability = Field(0.0, description="probability of an IoU-constrained random crop")
    zoom_out: Probability = Field(
        0.0, description="probability of placing the image on a larger canvas"
    )
    zoom_out_max: float = Field(
        3.0, ge=1.0, le=8.0, description="maximum side of the canvas, in image sides"
    )
    rotate: float = Field(
        0.0, ge=0.0, le=180.0, description="maximum angle of a random rotation, degrees"
    )
    scale: float = Field(
        0.0,
        ge=0.0,
        le=0.9,
        description="maximum relative change of size: 0.5 draws a factor from 0.5 to 1.5",
    )
    shear: float = Field(
        0.0,
        ge=0.0,
        le=30.0,
        description="maximum angle of a random shear of each axis, degrees",
    )
    photometric: Probability = Field(
        0.0, description="probability of a photometric (colour) change"
    )
    mosaic: Probability = Field(0.0, description="probability of combining four images in a mosaic")
    mixup: Probability = Field(
        0.0, description="probability of blending the image with another image"
    )
    close_mosaic: Probability = Field(
        0.0,
        description="last part of the training without mosaic and mixup, as a fraction of all "
        "steps",
    )
    max_bad_fraction: Probability = Field(
        0.01,
        description="fraction of unreadable samples, over all workers, above which training stops, "
        "if there are more than 10",
    )

    allow_no_objects: bool = Field(
        False,
        description="train on a set without any object to learn, for example to measure speed",
    )

    @property
    def affine(self) -> bool:
        """Return whether images are rotated, scaled or sheared."""
        return self.rotate > 0 or self.scale > 0 or self.shear > 0

    @field_validator("sizes")
    @classmethod
    def _divisible(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for size in value:
            if not 64 <= size <= 4096 or size % 64:
                raise ValueError(
                    f"{size} is not a valid input side; give multiples of 64 up to 4096"
                )
        if value and min(value) < 512 <= max(value):
            raise ValueError(
                f"{list(value)}: detectors have 4 levels below 512 pixels and 5 from 512 pixels; "
                "give sides with the same number of levels"
            )
        return value
