"""The batches of training and evaluation, and their way from loader processes to the trainer.

Shape letters: b images of this rank, S input side; M objects and K crowd regions, the maximum over
the images of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from pipeline.data.loading.shared_memory import RingSlot, SharedMemoryRing
from pipeline.data.shards.sample import Sample


class Batch(NamedTuple):
    """A rank's share of a global batch."""

    images: torch.Tensor  # (b,3,S,S) uint8 RGB, channels last in memory
    boxes: torch.Tensor  # (b,M,4) float32 input pixels, padded with 0
    labels: torch.Tensor  # (b,M) int64, padded with -1
    ignore_boxes: torch.Tensor  # (b,K,4) float32 crowd regions, padded with 0
    valid: torch.Tensor  # (b,) bool; False: unreadable, a black image without objects
    image_ids: list[str]
    problems: list[str]  # one line per unreadable sample
    samples_read: int = 0  # more than b with mosaic or mixup


class EvalBatch(NamedTuple):
    """Whole images, fitted to the input; unreadable ones are left out."""

    images: torch.Tensor  # (b,3,S,S) uint8 RGB, channels last in memory
    image_ids: list[str]
    sizes: torch.Tensor  # (b,2) int64 width, height of the originals
    visible_sizes: torch.Tensor  # (b,2) int64 of the area in the input; exceeds a letterboxed image
    samples: list[Sample]
    problems: list[str]


BatchT = TypeVar("BatchT", Batch, EvalBatch)
BatchT_co = TypeVar("BatchT_co", Batch, EvalBatch, covariant=True)


class BatchFields(Protocol[BatchT_co]):
    """All of a batch except its images, as arrays: tensors are expensive to send."""

    def to_batch(self, images: torch.Tensor) -> BatchT_co:
        """Return the batch with these images."""


class TrainFields(NamedTuple):
    """The fields of a `Batch` in transit."""

    boxes: np.ndarray
    labels: np.ndarray
    ignore_boxes: np.ndarray
    valid: np.ndarray
    image_ids: list[str]
    problems: list[str]
    samples_read: int

    def to_batch(self, images: torch.Tensor) -> Batch:
        """Return the batch with these images."""
        return Batch(
            images,
            torch.from_numpy(self.boxes),
            torch.from_numpy(self.labels),
            torch.from_numpy(self.ignore_boxes),
            torch.from_numpy(self.valid),
            self.image_ids,
            self.problems,
            self.samples_read,
        )


class EvalFields(NamedTuple):
    """The fields of an `EvalBatch` in transit."""

    image_ids: list[str]
    sizes: np.ndarray
    visible_sizes: np.ndarray
    samples: list[Sample]
    problems: list[str]

    def to_batch(self, images: torch.Tensor) -> EvalBatch:
        """Return the batch with these images."""
        return EvalBatch(
            images,
            self.image_ids,
            torch.from_numpy(self.sizes),
            torch.from_numpy(self.visible_sizes),
            self.samples,
            self.problems,
        )


@dataclass(frozen=True)
class PackedBatch(Generic[BatchT]):
    """A batch in transit: pixels (b,S,S,3) in a slot of shared memory or in the message itself."""

    pixels: RingSlot | np.ndarray
    fields: BatchFields[BatchT]

    def unpack(self) -> BatchT:
        """Return the batch; its images stay where the loader process wrote them."""
        pixels = self.pixels.open() if isinstance(self.pixels, RingSlot) else self.pixels
        return self.fields.to_batch(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    def pin_memory(self, device: Any = None) -> BatchT:
        """Return the batch in page-locked memory, from which copies to a GPU are asynchronous.

        Called by torch's DataLoader.
        """
        batch = self.unpack()
        return type(batch)._make(
            v.pin_memory() if isinstance(v, torch.Tensor) else v for v in batch
        )


class BatchDataset(Dataset[PackedBatch[BatchT]]):
    """A dataset of batches that writes pixels to shared memory where it has a ring."""

    ring: SharedMemoryRing | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "ring": None}  # only forked processes share its memory

    def allocate_pixels(self, shape: tuple[int, ...]) -> tuple[np.ndarray, RingSlot | None]:
        """Return an array (uint8, not cleared) and its slot, None if it is not in a ring."""
        worker = get_worker_info()
        if self.ring is None or worker is None:
            return np.empty(shape, np.uint8), None
        return self.ring.claim(worker.id, shape)
