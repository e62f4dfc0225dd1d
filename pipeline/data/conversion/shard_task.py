"""The conversion of one shard: planned before anything is read, done anywhere, done once.

Which images a shard takes depends on the source and the limits alone, never on who writes it or
when. A finished shard leaves a note of what it was made from, and is taken over if that is still
so.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.data.conversion.validate import checked
from pipeline.data.shards.manifest import Problem, Shard
from pipeline.data.shards.tar import TarError, sample_index
from pipeline.data.shards.writer import ShardWriter, index_path
from pipeline.data.sources.record import Item, Ready, given_up
from pipeline.errors import UserError
from pipeline.storage.durable import write_durably

DONE = "done.json"
# Raise it when the same source would give other shards, so that half-finished sets are not mixed.
CONVERSION = 2


class ShardResult(BaseModel):
    """What became of one task: a shard, unless all its images were skipped, and its counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made_from: str
    taken: int  # images that were planned for it
    shard: Shard | None
    boxes: dict[int, int]  # per label
    empty: int
    problems: list[Problem]
    names: list[str]  # of the images, then their hashes of looks and of content, in hex
    looks: list[str]
    contents: list[str]


@dataclass(frozen=True)
class ShardTask:
    """Images to write into one shard, in a folder of its own."""

    folder: str
    first_key: int
    classes: tuple[str, ...]
    items: list[Item]

    def made_from(self) -> str:
        """Stands for everything that the shard's bytes depend on."""
        seen = hashlib.sha256(repr((CONVERSION, self.first_key, self.classes)).encode())
        for item in self.items:
            seen.update(repr(item).encode())
        return seen.hexdigest()

    def finished(self) -> ShardResult | None:
        """What an earlier conversion left, if it made this very shard and it is whole."""
        folder = Path(self.folder)
        try:
            result = ShardResult.model_validate_json((folder / DONE).read_bytes())
            if result.made_from != self.made_from():
                return None
            if shard := result.shard:
                with (folder / shard.name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                        return None
                    index = sample_index(file.fileno()).tobytes()
                if index_path(folder / shard.name).read_bytes() != index:
                    return None
        except (OSError, ValidationError, TarError):
            return None
        return result

    def run(self, tick: Callable[[], None] = lambda: None) -> ShardResult:
        """Write the shard; ``tick`` is called after each image. Raises OSError or UserError."""
        folder = Path(self.folder)
        if not folder.parent.is_dir():
            raise UserError(f"{folder.parent}: not seen by all nodes; choose an --out that is")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        labels = {name: number for number, name in enumerate(self.classes)}
        # The limits were kept when the task was planned.
        writer = ShardWriter(folder, len(self.items), 2**62, self.first_key)
        boxes: Counter[int] = Counter()
        empty, problems, names = 0, [], []
        looks: list[str] = []
        contents: list[str] = []
        for item in self.items:
            image, sample, found = checked(item.record(), labels)
            problems += found
            if image and sample:
                json = sample.to_json()
                writer.add(image.extension, image.data, json)
                boxes.update(sample.labels)
                empty += not sample.boxes
                names.append(sample.file_name)
                looks.append(image.look.hex())
                content = hashlib.sha256(image.data).digest() + hashlib.sha256(json).digest()
                contents.append(content.hex())
            tick()
        result = ShardResult(
            made_from=self.made_from(),
            taken=len(self.items),
            shard=next(iter(writer.close()), None),
            boxes=dict(boxes),
            empty=empty,
            problems=problems,
            names=names,
            looks=looks,
            contents=contents,
        )
        write_durably(folder / DONE, result.model_dump_json().encode())
        return result


def plan_shards(
    items: Iterable[Item],
    classes: Iterable[str],
    folder: Path,
    max_samples: int,
    max_bytes: int,
) -> Iterator[ShardTask]:
    """Cut the stream of images into shards of at most so many images and about so many bytes."""
    names = tuple(classes)
    group: list[Item] = []
    number = count = size = 0
    for item in unlike(items):
        if group and (len(group) >= max_samples or size + item.weight > max_bytes):
            yield ShardTask(str(folder / f"{number:06d}"), count - len(group), names, group)
            group, number, size = [], number + 1, 0
        group.append(item)
        count, size = count + 1, size + item.weight
    if group:
        yield ShardTask(str(folder / f"{number:06d}"), count - len(group), names, group)


def unlike(items: Iterable[Item]) -> Iterator[Item]:
    """The same images; those whose id was there before are given up."""
    ids: set[str] = set()
    for item in items:
        # A record that was given up has its reason already.
        if item.image_id in ids and not (isinstance(item, Ready) and item.ready.image is None):
            reason = f"the source lists {item.image_id} twice; the first one is kept"
            yield given_up(item.image_id, item.file_name, reason)
            continue
        ids.add(item.image_id)
        yield item
