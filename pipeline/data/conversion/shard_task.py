"""Convert one shard: planned before any image is read, written once, in any process.

The images of a shard depend on the source and the limits alone, not on which process writes it or
when. A finished shard has a record of its inputs beside it; a later conversion reuses the shard if
the inputs are still the same.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.image_ids import ImageIds
from pipeline.data.conversion.tiles import MAX_TILES, Piece, cut_tiles
from pipeline.data.conversion.validate import validate_record
from pipeline.data.shards.image_classes import encode_image
from pipeline.data.shards.manifest import Shard, Tiling
from pipeline.data.shards.problems import Problem
from pipeline.data.shards.tar import INDEX_ROW_BYTES, TarError, sample_index
from pipeline.data.shards.writer import ShardWriter, index_path
from pipeline.data.sources.record import ParsedImage, SourceImage, skipped_image
from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.durable import write_durably
from pipeline.storage.remote import is_remote

RESULT_FILE = "done.json"
# Raise it when the same source would give other shards or other problems. Shards of an interrupted
# conversion with another version are not reused: the conversion starts from scratch.
CONVERSION_VERSION = 5


class ShardResult(Document):
    """Result of one task: its counts, and a shard unless all its images were skipped."""

    FORMAT_VERSION: ClassVar[int] = 4

    input_hash: str
    shard: Shard | None
    boxes_per_label: dict[int, int]
    samples_without_objects: int
    counts: ObjectCounts
    problems: list[Problem]
    file_names: list[str]  # of each picture, also if it is cut into tiles
    image_hashes: list[str]  # of each picture, in hex, by which near duplicates are found
    content_hashes: list[str]  # of each sample: sha256 of its image and of its JSON, in hex
    image_classes: str  # the rows of its samples in `IMAGE_CLASSES`, in hex


@dataclass(frozen=True)
class WrittenShard:
    """A finished shard in its folder. The record of its result is read when it is needed."""

    folder: str
    input_hash: str

    def read(self) -> ShardResult:
        """Return the result. Raises OSError, or UserError if it is no longer the same."""
        name = f"{self.folder}/{RESULT_FILE}"
        try:
            result = ShardResult.parse(_read_record(self.folder), name)
        except DocumentError as error:
            raise UserError(f"{error}; run the same command again") from None
        if result.input_hash != self.input_hash:
            raise UserError(f"{name}: another conversion is writing there; wait until it ends")
        return result


@dataclass(frozen=True)
class ShardTask:
    """Images to write into one shard, in a separate folder or at a URI of an object store."""

    folder: str
    first_key: int
    classes: tuple[str, ...]
    images: list[SourceImage]
    tiling: Tiling | None = None

    def input_hash(self) -> str:
        """Return a hash of everything that the bytes of the shard depend on."""
        digest = hashlib.sha256(repr((CONVERSION_VERSION, self.first_key, self.classes)).encode())
        if self.tiling:
            digest.update(repr(self.tiling).encode())
        for image in self.images:
            digest.update(repr(image).encode())
        return digest.hexdigest()

    def load_result(self) -> WrittenShard | None:
        """Return the result of an earlier conversion if it has the same inputs and is intact."""
        try:
            result = ShardResult.parse(_read_record(self.folder), RESULT_FILE)
            if result.input_hash != self.input_hash():
                return None
            if result.shard and not _is_intact(result.shard, self.folder):
                return None
        except (OSError, DocumentError, UserError, TarError):
            return None
        return WrittenShard(self.folder, result.input_hash)

    def run(self, tick: Callable[[], None] = lambda: None) -> WrittenShard:
        """Write the shard; ``tick`` is called after each image. Raises OSError or UserError."""
        if is_remote(self.folder):
            from pipeline.data.conversion.object_staging import upload_folder  # slow to import

            with tempfile.TemporaryDirectory(prefix="convert-") as local:
                result = self._write(Path(local), tick)
                upload_folder(Path(local), self.folder, last=RESULT_FILE)
        else:
            folder = Path(self.folder)
            if not folder.parent.is_dir():
                raise UserError(
                    f"{folder.parent}: not visible to all nodes; choose an --out that all nodes "
                    "share"
                )
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            result = self._write(folder, tick)
        return WrittenShard(self.folder, result.input_hash)

    def _write(self, folder: Path, tick: Callable[[], None]) -> ShardResult:
        """Write the shard, its index and the record of its result into an empty folder."""
        labels = {name: number for number, name in enumerate(self.classes)}
        # The limits were applied when the task was planned.
        writer = ShardWriter(folder, 2**62, 2**62, self.first_key)
        boxes: Counter[int] = Counter()
        counts = ObjectCounts()
        without_objects = 0
        problems: list[Problem] = []
        file_names: list[str] = []
        image_hashes: list[str] = []
        content_hashes: list[str] = []
        image_classes = bytearray()
        for source_image in self.images:
            counted_before = counts.kept, counts.crowd
            image, sample, found = validate_record(source_image.read_record(), labels, counts)
            problems += found
            if image and sample:
                pieces: Iterable[Piece] = [Piece(image.extension, image.data, sample)]
                lost: list[Problem] = []
                if self.tiling:
                    pieces = cut_tiles(image, sample, self.tiling, lost)
                samples_before = writer.samples
                for extension, data, piece in pieces:
                    json = piece.to_json()
                    writer.add(extension, data, json)
                    boxes.update(piece.labels)
                    without_objects += not piece.boxes
                    counts.crowd_boxes += sum(piece.crowd)
                    content = hashlib.sha256(data).digest() + hashlib.sha256(json).digest()
                    content_hashes.append(content.hex())
                    image_classes += encode_image(piece.object_labels(), len(self.classes))
                problems += lost
                if writer.samples > samples_before:
                    counts.kept -= sum(problem.lost_objects for problem in lost)
                    file_names.append(sample.file_name)
                    image_hashes.append(image.image_hash.hex())
                else:
                    counts.kept, counts.crowd = counted_before
            tick()
        result = ShardResult(
            input_hash=self.input_hash(),
            shard=next(iter(writer.close()), None),
            boxes_per_label=dict(boxes),
            samples_without_objects=without_objects,
            counts=counts,
            problems=problems,
            file_names=file_names,
            image_hashes=image_hashes,
            content_hashes=content_hashes,
            image_classes=image_classes.hex(),
        )
        write_durably(folder / RESULT_FILE, result.encode(indent=None))
        return result


def _read_record(folder: str) -> bytes:
    if is_remote(folder):
        from pipeline.storage.folder import Storage  # slow to import

        return Storage(folder).read(RESULT_FILE)
    return (Path(folder) / RESULT_FILE).read_bytes()


def _is_intact(shard: Shard, folder: str) -> bool:
    """Return whether a shard and its index are as they were written; by size in object stores."""
    if is_remote(folder):
        from pipeline.storage.folder import Storage

        sizes = {info.name: info.size for info in Storage(folder).files()}
        index_name = index_path(Path(shard.name)).name
        expected = {shard.name: shard.bytes, index_name: shard.samples * INDEX_ROW_BYTES}
        return expected.items() <= sizes.items()
    path = Path(folder) / shard.name
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            return False
        index = sample_index(file.fileno()).tobytes()
    return index_path(path).read_bytes() == index


def plan_shards(
    images: Iterable[SourceImage],
    classes: Iterable[str],
    folder: Callable[[int], str],
    max_samples: int,
    max_bytes: int,
    tiling: Tiling | None = None,
) -> Iterator[ShardTask]:
    """Cut the stream of images into shards of limited images and about limited bytes.

    ``folder`` gives the folder of each task by its number. With ``tiling`` the bytes are those of
    the whole pictures, and keys leave room for the tiles of each.
    """
    keys = MAX_TILES if tiling else 1
    names = tuple(classes)
    group: list[SourceImage] = []
    number = count = size = 0
    for image in skip_duplicate_ids(images):
        full = len(group) >= max_samples or size + image.estimated_bytes > max_bytes
        if group and full:
            yield ShardTask(folder(number), keys * (count - len(group)), names, group, tiling)
            group, number, size = [], number + 1, 0
        group.append(image)
        count, size = count + 1, size + image.estimated_bytes
    if group:
        yield ShardTask(folder(number), keys * (count - len(group)), names, group, tiling)


def skip_duplicate_ids(images: Iterable[SourceImage]) -> Iterator[SourceImage]:
    """Yield the same images, with those whose id occurred before marked as skipped."""
    ids = ImageIds()
    for image in images:
        # An image that is skipped anyway keeps its own reason.
        skipped = isinstance(image, ParsedImage) and image.record.image is None
        if not ids.add(image.image_id) and not skipped:
            reason = f"the source lists {image.image_id} twice; the first one is kept"
            yield skipped_image(image.image_id, image.file_name, reason)
            continue
        yield image
