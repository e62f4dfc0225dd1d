"""Train and val out of one set of images, the same each time, with look-alikes on the same side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.data.conversion.executor import run_tasks
from pipeline.data.conversion.image_bytes import read_image, stored_image
from pipeline.data.conversion.near_duplicates import alike
from pipeline.data.conversion.shard_task import unlike
from pipeline.data.sources.record import Item
from pipeline.data.transforms.decode import ImageError
from pipeline.errors import UserError
from pipeline.progress import Progress

CHUNK = 256


def divide(
    items: Iterable[Item], ratio: float, seed: int, workers: int = 1
) -> tuple[list[Item], list[Item]]:
    """Train with about ``ratio`` of the images, and val with the rest, each in its source's order.

    An image's side depends on the seed and its id, so that adding images moves few others. Near
    duplicates stay together: a val set that shares pictures with train would flatter. Raises
    UserError where one side would be empty.
    """
    images = list(unlike(items))
    looks = _looks(images, workers)
    groups = alike(looks)
    grouped = {index for group in groups for index in group}
    units = groups + [[index] for index in range(len(images)) if index not in grouped]
    units.sort(key=lambda unit: min(_lot(seed, images[index].image_id) for index in unit))
    wanted = min(max(round(ratio * len(images)), 1), len(images) - 1)
    train: set[int] = set()
    for unit in units:
        if len(train) + len(unit) / 2 <= wanted:
            train.update(unit)
    sides = (
        [item for index, item in enumerate(images) if index in train],
        [item for index, item in enumerate(images) if index not in train],
    )
    if not all(sides):
        raise UserError(
            f"--split-by {ratio}: leaves train or val of {len(images)} images without any "
            f"({len(units)} of them look different); choose another ratio"
        )
    return sides


def _lot(seed: int, image_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {image_id}".encode()).digest()


def _looks(images: list[Item], workers: int) -> list[bytes]:
    progress = Progress("comparing", len(images))
    tasks = (LookTask(images[at : at + CHUNK]) for at in range(0, len(images), CHUNK))
    return [look for looks in run_tasks(tasks, workers, progress) for look in looks]


@dataclass(frozen=True)
class LookTask:
    """Hashes of the looks of some images."""

    items: list[Item]

    def finished(self) -> list[bytes] | None:
        """Never beforehand."""
        return None

    def run(self, tick: Callable[[], None]) -> list[bytes]:
        """One hash per image; one of its own for an image that cannot be read."""
        return list(self._each(tick))

    def _each(self, tick: Callable[[], None]) -> Iterator[bytes]:
        for item in self.items:
            record = item.record()
            try:
                if record.image is None:
                    raise ImageError("given up")
                data = read_image(record.image)
                yield stored_image(data, record.file_name, record.size, upright=record.upright).look
            except ImageError:
                yield _lot(-1, item.image_id)[:16]
            tick()
