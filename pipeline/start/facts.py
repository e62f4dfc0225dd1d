"""Facts that the rules decide by: of a training set, and of this machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.data.transforms.resize import fill_input

SAMPLES = 1024  # annotations that are read, evenly spaced
PIXEL_SAMPLES = 24  # images that are decoded
PIXEL_SIDE = 512  # larger ones are made smaller: pixels of enlarged photographs are equal, too
_CGROUP_CPUS = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class SetFacts:
    """A training set. Sizes are medians in pixels; ``sides`` are those of small objects.

    ``small_side`` is the side, the square root of the area, that a tenth of the objects are below,
    as a fraction of that of their image, and ``small_side_padded`` as one of the image's longer
    side. ``flat`` is the median share of pixels that are equal to their neighbour: photographs have
    noise, drawings and screenshots have flat areas.
    """

    images: int
    val_images: int
    test_images: int
    width: int
    height: int
    small_side: float
    small_side_padded: float
    elongated: float
    flat: float


@dataclass(frozen=True)
class Machine:
    """What trains: usable CPUs and GPUs."""

    cpus: int
    gpus: int = 0
    gpu_name: str = ""

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU core{'s' * (self.cpus > 1)}"
        return f"{self.gpus} x {self.gpu_name}, {cpus}" if self.gpus else cpus


def set_facts(train: str, val_images: int, test_images: int) -> SetFacts:
    """Return the facts of a training set, from some of its samples. Raises UserError."""
    shards = ShardSet(train)
    classes = len(shards.manifest.classes)
    sizes, sides, padded_sides = [], [], []
    for index in _spaced(len(shards), SAMPLES):
        with contextlib.suppress(ImageError):  # the doctor reports it
            sample = parse_sample(shards.read_json(index), classes)
            sizes.append((sample.width, sample.height))
            boxes = sample.objects()
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            sides += np.sqrt(areas / (sample.width * sample.height)).tolist()
            padded_sides += (np.sqrt(areas) / max(sample.width, sample.height)).tolist()
    flat = []
    for index in _spaced(len(shards), PIXEL_SAMPLES):
        with contextlib.suppress(ImageError):
            pixels = _shrunk(decode_image(shards.read(index).image))
            flat.append(float((pixels[:, 1:] == pixels[:, :-1]).all(2).mean()))
    width, height = np.median(np.array(sizes or [(1, 1)]), axis=0)
    ratios = np.array([max(size) / min(size) for size in sizes] or [1.0])
    return SetFacts(
        images=len(shards),
        val_images=val_images,
        test_images=test_images,
        width=int(width),
        height=int(height),
        small_side=float(np.quantile(sides, 0.1)) if sides else 1.0,
        small_side_padded=float(np.quantile(padded_sides, 0.1)) if sides else 1.0,
        elongated=float(np.mean(ratios > 2)),
        flat=float(np.median(flat)) if flat else 0.0,
    )


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Return an image (H,W,3) with sides of at most ``PIXEL_SIDE``."""
    scale = PIXEL_SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    out = np.empty((height, width, 3), np.uint8)
    fill_input(pixels, out)
    return out


def _spaced(total: int, count: int) -> list[int]:
    chosen: list[int] = np.linspace(0, total - 1, min(total, count)).astype(int).tolist()
    return chosen


def this_machine(*, use_gpus: bool = True) -> Machine:
    """Return the CPUs that this process may use, under the limit of a container, and the GPUs."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP_CPUS.read_text("ascii").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    gpus = torch.cuda.device_count() if use_gpus else 0
    return Machine(cpus, gpus, torch.cuda.get_device_name(0) if gpus else "")
