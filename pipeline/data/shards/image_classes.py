"""Which classes each image of a shard set has: a small file beside the manifest.

Sampling by class needs them before any shard is read. The file has the labels of each image's
classes, ascending, and then an end mark, image by image in the order of the set: little-endian
uint16, or uint32 for more than 65,535 classes. The end mark is the largest such number. Crowd
regions, which training ignores, do not count.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.data.shards.manifest import (
    MANIFEST,
    Manifest,
    local_folder,
    read_problems,
    write_manifest,
)
from pipeline.data.shards.problems import PROBLEMS, ProblemWriter
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.shards.shard_table import IMAGE_CLASSES, ImageClassesFile
from pipeline.data.transforms.decode import ImageError
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.storage.durable import sync_file
from pipeline.storage.redact import error_line
from pipeline.storage.remote import RETRIES, Remote, is_remote, with_retries


class ImageClassesWriter:
    """Write the file. Nothing is kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash, self._bytes = hashlib.sha256(), 0
        self._file = path.open("wb")

    def add(self, rows: bytes) -> None:
        """Append images, as `encode_image` returns them. Raises OSError."""
        self._hash.update(rows)
        self._bytes += len(rows)
        self._file.write(rows)

    def close(self) -> ImageClassesFile | None:
        """Finish the file; return its entry in the manifest, None without images."""
        with self._file:
            sync_file(self._file)
        if not self._bytes:
            self.path.unlink()
            return None
        return ImageClassesFile(bytes=self._bytes, sha256=self._hash.hexdigest())


def encode_image(labels: Iterable[int], classes: int) -> bytes:
    """Return the bytes of one image in a set with so many classes."""
    kind = _number_type(classes)
    return np.array([*sorted(labels), np.iinfo(kind).max], kind).tobytes()


def classes_file(data: bytes) -> ImageClassesFile:
    """Return the entry in the manifest of a file with this content."""
    return ImageClassesFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def parse_image_classes(data: bytes, classes: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of all images (K,), each image followed by the number of classes.

    Also returns where images begin (samples,). Raises ValueError if the bytes are not those of such
    a set.
    """
    kind = _number_type(classes)
    if len(data) % kind.itemsize:
        raise ValueError(f"{IMAGE_CLASSES} is truncated")
    numbers = np.frombuffer(data, kind)  # (K,)
    is_end = numbers == np.iinfo(kind).max  # (K,)
    ends = np.flatnonzero(is_end)
    if len(ends) != samples or not is_end[-1:].any():
        raise ValueError(f"{IMAGE_CLASSES} has {len(ends)} images, the manifest says {samples}")
    if (numbers[~is_end] >= classes).any():
        raise ValueError(f"{IMAGE_CLASSES} has labels beyond the {classes} classes")
    return np.minimum(numbers, classes), np.concatenate(([0], ends[:-1] + 1))


def read_image_classes(uri: str, entry: ImageClassesFile, retries: int) -> bytes:
    """Return the content of the file of the set in a folder or at a URL.

    Raises UserError if it is missing or damaged, OutageError if the store does not respond.
    """
    path = f"{uri.rstrip('/')}/{IMAGE_CLASSES}"
    try:
        if is_remote(uri):
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / IMAGE_CLASSES
                Remote(uri, retries).fetch(IMAGE_CLASSES, local, entry.bytes, entry.sha256)
                return local.read_bytes()
        data = (local_folder(uri) / IMAGE_CLASSES).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: missing, but the manifest lists it; copy it again") from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if (found := hashlib.sha256(data).hexdigest()) != entry.sha256:
        raise UserError(
            f"{path}: sha256 {found[:12]}..., the manifest says {entry.sha256[:12]}...; copy the "
            "shard set again"
        )
    return data


def add_image_classes(uri: str) -> Manifest:
    """Write the file of a set of an earlier version, and last a manifest of the current format.

    Returns the manifest. Remote shards are fetched through the cache. Trainings on the set may
    continue: what they read stays the same. Raises UserError if a sample is damaged or the files
    cannot be written, and OutageError.
    """
    from pipeline.storage.folder import Storage  # slow to import

    shards = ShardSet(uri)
    try:
        files = Storage(uri if is_remote(uri) else str(local_folder(uri).absolute()))
    except UserError:
        raise UserError(
            f"{uri}: nothing can be written there; upgrade the set in its folder, or below a "
            "prefix such as s3://BUCKET/NAME"
        ) from None
    rows = _read_all(shards)
    manifest = shards.manifest.model_copy(update={"image_classes": classes_file(rows)})
    with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
        work = Path(folder)
        write_manifest(manifest, work)
        (work / IMAGE_CLASSES).write_bytes(rows)
        names = [IMAGE_CLASSES, MANIFEST]
        try:
            if manifest.problem_counts and not files.exists(PROBLEMS):
                # Formats 1 and 2 have the problems in the manifest.
                writer = ProblemWriter(work / PROBLEMS)
                writer.add(read_problems(uri))
                writer.close()
                names.insert(0, PROBLEMS)
            for name in names:
                content = (work / name).read_bytes()
                with_retries(lambda: files.write(name, content), f"{uri}/{name}", RETRIES)  # noqa: B023
        except OSError as error:
            raise UserError(f"{uri}: cannot be written: {error_line(error)}") from None
    return manifest


def _read_all(shards: ShardSet) -> bytes:
    """Return the content of the file, from the annotations of all samples."""
    rows, classes = bytearray(), len(shards.manifest.classes)
    progress = Progress("reading", len(shards))
    for index in range(len(shards)):
        raw = shards.read_json(index)
        try:
            sample = parse_sample(raw, classes)
        except ImageError as error:
            raise UserError(
                f"{shards.uri}: {raw.location}: {error}; see python -m jobs.shards verify"
            ) from None
        rows += encode_image(sample.object_labels(), classes)
        progress.advance()
    progress.finish()
    return bytes(rows)


def _number_type(classes: int) -> np.dtype:
    return np.dtype("<u2" if classes < 2**16 else "<u4")
