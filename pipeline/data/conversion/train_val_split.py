"""Split one set of images into train and val, reproducibly, with near duplicates on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.data.conversion.executor import run_tasks
from pipeline.data.conversion.image_bytes import prepare_image, read_image
from pipeline.data.conversion.near_duplicates import group_near_duplicates
from pipeline.data.conversion.shard_task import skip_duplicate_ids
from pipeline.data.sources.record import Record, SourceImage
from pipeline.data.transforms.decode import ImageError
from pipeline.errors import UserError
from pipeline.progress import Progress

IMAGES_PER_TASK = 256


def split_train_val(
    images: Iterable[SourceImage],
    ratio: float,
    seed: int,
    workers: int = 1,
    *,
    scorable_val: bool = False,
) -> tuple[list[SourceImage], list[SourceImage]]:
    """Return train with about ``ratio`` of the images, and val with the rest, in source order.

    The side of an image depends on the seed and its id: adding images moves few others. Near
    duplicates stay on one side, because a val set that shares images with train overstates the
    accuracy. With ``scorable_val``, val has a share of the images that decode and have objects, and
    train has the others and the rest of these. Raises UserError if one side would be empty.
    """
    listed = list(skip_duplicate_ids(images))
    hashes, scorable = zip(*_hash_images(listed, workers), strict=True) if listed else ((), ())
    groups = group_near_duplicates(hashes)
    grouped = {index for group in groups for index in group}
    units = groups + [[index] for index in range(len(listed)) if index not in grouped]
    units.sort(key=lambda unit: min(_sort_key(seed, listed[index].image_id) for index in unit))
    train: set[int] = set()
    if scorable_val:
        train = {index for unit in units if not any(scorable[i] for i in unit) for index in unit}
        units = [unit for unit in units if unit[0] not in train]
    drawn = len(listed) - len(train)
    target = len(train) + min(max(round(ratio * drawn), 1), drawn - 1)
    for unit in units:
        if len(train) + len(unit) / 2 <= target:
            train.update(unit)
    sides = (
        [image for index, image in enumerate(listed) if index in train],
        [image for index, image in enumerate(listed) if index not in train],
    )
    if not all(sides) or (scorable_val and not any(scorable[index] for index in train)):
        raise UserError(
            f"--split-by {ratio}: train or val of {len(listed)} images would be empty "
            f"({len(units)} of them look different); choose another ratio"
        )
    return sides


def _sort_key(seed: int, image_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {image_id}".encode()).digest()


def _hash_images(images: list[SourceImage], workers: int) -> list[tuple[bytes, bool]]:
    progress = Progress("comparing", len(images))
    starts = range(0, len(images), IMAGES_PER_TASK)
    tasks = (HashTask(images[start : start + IMAGES_PER_TASK]) for start in starts)
    return [hashed for hashes in run_tasks(tasks, workers, progress) for hashed in hashes]


@dataclass(frozen=True)
class HashTask:
    """Hashes some images, to find near duplicates."""

    images: list[SourceImage]

    def load_result(self) -> list[tuple[bytes, bool]] | None:
        """Return None: results are not stored."""
        return None

    def run(self, tick: Callable[[], None]) -> list[tuple[bytes, bool]]:
        """Return for each image its hash, and whether it decodes and has objects to find.

        An unreadable image gets a unique hash.
        """
        return list(self._hashes(tick))

    def _hashes(self, tick: Callable[[], None]) -> Iterator[tuple[bytes, bool]]:
        for image in self.images:
            record = image.read_record()
            try:
                if record.image is None:
                    raise ImageError("skipped")
                data = read_image(record.image)
                stored = prepare_image(data, record.file_name, upright=record.upright)
                yield stored.image_hash, _is_scorable(record, stored.width, stored.height)
            except ImageError:
                yield _sort_key(-1, image.image_id)[:16], False
            tick()


def _is_scorable(record: Record, width: int, height: int) -> bool:
    """Return whether an image has an object that counts, with a box that is inside in part."""
    if record.relative:
        width = height = 1
    return any(
        max(x1, 0) < min(x2, width) and max(y1, 0) < min(y2, height)
        for (x1, y1, x2, y2) in (
            one.box for one in record.objects if not (one.difficult or one.crowd)
        )
    )
