"""What a loader hands to training and to evaluation, and how it gets there from its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.data.loading.shared_memory import Slot
from pipeline.data.shards.sample import Sample


class Batch(NamedTuple):
    """A rank's share of a global batch; M and K are the most in any of its b images."""

    images: torch.Tensor  # (b,3,S,S) uint8 RGB, channels last in memory
    boxes: torch.Tensor  # (b,M,4) float32 input pixels, padded with 0
    labels: torch.Tensor  # (b,M) int64, padded with -1
    ignore_boxes: torch.Tensor  # (b,K,4) float32 crowd regions, padded with 0
    valid: torch.Tensor  # (b,) bool; False: unreadable, a black image without objects
    image_ids: list[str]
    problems: list[str]  # one line per unreadable sample
    read: int = 0  # samples that were read for it: more than b with mosaic or mixup


class EvalBatch(NamedTuple):
    """Whole images, fitted to the input; unreadable ones are left out."""

    images: torch.Tensor  # (b,3,S,S) uint8 RGB, channels last in memory
    image_ids: list[str]
    sizes: torch.Tensor  # (b,2) int64 width, height of the originals
    seen: torch.Tensor  # (b,2) int64 of what the input shows: with a letterbox, more than that
    samples: list[Sample]
    problems: list[str]


@dataclass(frozen=True)
class Parcel:
    """A batch on its way: pixels (b,S,S,3) in a slot or by themselves, all else in ``fields``.

    ``fields`` are those of ``kind`` after its images, with arrays in place of tensors.
    """

    kind: type[Any]
    pixels: Slot | np.ndarray
    fields: tuple[Any, ...]

    def open(self) -> Any:
        """The batch, its images where the loader process wrote them."""
        pixels = self.pixels.open() if isinstance(self.pixels, Slot) else self.pixels
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return self.kind(images, *(_tensor(value) for value in self.fields))

    def pin_memory(self, device: Any = None) -> Any:
        """The batch in page-locked memory, from where copies to a GPU need not be waited for."""
        return self.kind(
            *(v.pin_memory() if isinstance(v, torch.Tensor) else v for v in self.open())
        )


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
