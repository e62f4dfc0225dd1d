"""Turn WebDataset tars that are in the format of shards into a shard set, without copying them.

Every sample is checked as `verify` does. An index is then written beside each tar, and last the
manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from pipeline.data.shards.image_classes import classes_file
from pipeline.data.shards.manifest import MANIFEST, Manifest, local_folder, write_manifest
from pipeline.data.shards.problems import PROBLEMS
from pipeline.data.shards.shard_table import IMAGE_CLASSES, Shard
from pipeline.data.shards.tar import INDEX_TYPE, TarError, sample_rows
from pipeline.data.shards.verify import Verification
from pipeline.data.shards.writer import index_path
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.storage.checksum import file_sha256
from pipeline.storage.durable import write_durably
from pipeline.storage.redact import error_line
from pipeline.storage.remote import RETRIES, Remote, is_remote, with_retries

MAX_FAULTS = 100  # at which the check stops


class Adoption(NamedTuple):
    """The manifest that was written, or None and one line for each fault."""

    manifest: Manifest | None
    faults: list[str]


def adopt(
    uri: str,
    classes: Sequence[str],
    *,
    name: str | None = None,
    split: str = "train",
    overwrite: bool = False,
) -> Adoption:
    """Make a manifest and indices for the tars in a folder, or below a URI of an object store.

    Shards are read in the order of their names; labels index ``classes``. Remote ones are fetched
    one at a time to a temporary folder. Nothing is written if anything is wrong. Raises UserError
    if there is no tar, or a manifest that ``overwrite`` does not allow to replace, and OutageError.
    """
    if not classes or len(set(classes)) != len(classes):
        raise UserError("the class names must be one or more different names")
    store = _ObjectStore(uri) if is_remote(uri) else _Folder(uri)
    names = store.names()
    tars = sorted(each for each in names if each.endswith(".tar"))
    if not tars:
        raise UserError(f"{uri}: contains no .tar files; name the folder of the shards")
    if MANIFEST in names and not overwrite:
        raise UserError(f"{uri}: already a shard set; replace its manifest with --overwrite")
    with tempfile.TemporaryDirectory(prefix="adopt-") as work:
        candidates = _Candidates(classes, Path(work))
        progress = Progress("checking", len(tars), "shards")
        for tar in tars:
            with store.open(tar) as path:
                candidates.add(tar, path)
            progress.advance()
            if len(candidates.verification.faults) >= MAX_FAULTS:
                break
        progress.finish()
        if faults := candidates.verification.faults:
            return Adoption(None, faults)
        manifest = candidates.manifest(name or store.name, split)
        (Path(work) / IMAGE_CLASSES).write_bytes(candidates.verification.image_classes)
        write_manifest(manifest, Path(work))
        store.publish(manifest, Path(work))
    return Adoption(manifest, [])


class _Candidates:
    """The shards of a set to be, with what the manifest has of them; indices go to ``work``."""

    def __init__(self, classes: Sequence[str], work: Path) -> None:
        self.work, self.classes = work, list(classes)
        self.shards: list[Shard] = []
        self.verification = Verification(_empty_manifest(self.classes))
        self._content = hashlib.sha256("\n".join(classes).encode())

    def add(self, name: str, path: Path) -> None:
        """Check a tar in a local file, and index it."""
        faults = self.verification.faults
        with path.open("rb") as file:
            descriptor = file.fileno()
            try:
                rows = list(sample_rows(descriptor))
                size = os.fstat(descriptor).st_size
                shard = Shard(name=name, samples=len(rows), bytes=size, sha256=file_sha256(path))
            except TarError as error:
                faults.append(f"{name}: {error}")
                return
            except ValidationError:
                hint = "" if rows else " (it has none)"
                faults.append(
                    f"{name}: a shard has one or more samples{hint} and a name of letters, digits "
                    "and _ . -"
                )
                return
            for image, label in rows:
                self.verification.check_sample(shard, descriptor, image, label)
                for member in (image, label):
                    data = os.pread(descriptor, member.size, member.offset)
                    self._content.update(hashlib.sha256(data).digest())
                if len(faults) >= MAX_FAULTS:
                    return
        index = np.array([(*image[1:], *label[1:]) for image, label in rows], dtype=INDEX_TYPE)
        index_path(self.work / name).write_bytes(index.tobytes())
        self.shards.append(shard)

    def manifest(self, name: str, split: str) -> Manifest:
        """Return the manifest of all shards."""
        found = self.verification
        return _empty_manifest(self.classes).model_copy(
            update={
                "name": name,
                "split": split,
                "fingerprint": self._content.hexdigest(),
                "samples": found.samples,
                "samples_without_objects": found.samples_without_objects,
                "boxes": sum(found.boxes.values()),
                "boxes_per_class": {c: found.boxes[i] for i, c in enumerate(self.classes)},
                "shards": self.shards,
                "image_classes": classes_file(bytes(found.image_classes)),
            }
        )


def _empty_manifest(classes: list[str]) -> Manifest:
    return Manifest(
        name="",
        split="",
        source="webdataset",
        fingerprint="",
        classes=classes,
        samples=0,
        samples_without_objects=0,
        boxes=0,
        boxes_per_class={},
        shards=[],
        problem_counts={},
    )


class _Folder:
    """Tars in a local folder."""

    def __init__(self, uri: str) -> None:
        self.folder = local_folder(uri)
        self.name = self.folder.resolve().name
        if not self.folder.is_dir():
            raise UserError(f"{uri}: no such directory")

    def names(self) -> set[str]:
        """Return the names of all files."""
        return {path.name for path in self.folder.iterdir() if path.is_file()}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Yield the path of a tar. Raises UserError if it cannot be read."""
        try:
            yield self.folder / name
        except OSError as error:
            raise UserError(f"{self.folder / name}: cannot be read: {error_line(error)}") from None

    def publish(self, manifest: Manifest, work: Path) -> None:
        """Write the indices, then the manifest. Raises UserError."""
        try:
            for name in (MANIFEST, PROBLEMS):
                (self.folder / name).unlink(missing_ok=True)
            for shard in manifest.shards:
                index = index_path(self.folder / shard.name)
                write_durably(index, (work / index.name).read_bytes())
            write_durably(self.folder / IMAGE_CLASSES, (work / IMAGE_CLASSES).read_bytes())
            write_manifest(manifest, self.folder)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error_line(error)}") from None


class _ObjectStore:
    """Tars below a URI of an object store."""

    def __init__(self, uri: str) -> None:
        from pipeline.storage.folder import Storage  # slow to import

        self.remote = Remote(uri)
        self.uri = self.remote.uri
        self.name = self.uri.rpartition("/")[2]
        try:
            self._files = Storage(self.uri)
        except UserError:
            raise UserError(
                f"{uri}: a manifest cannot be written there; adopt the shards in a folder, or "
                "below a prefix such as s3://BUCKET/NAME"
            ) from None

    def names(self) -> set[str]:
        """Return the names of the objects directly below the URI."""
        found = with_retries(self._files.files, self.uri, RETRIES)
        return {info.name for info in found if "/" not in info.name}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Fetch a tar and yield its local path. Raises UserError or OutageError."""
        with tempfile.TemporaryDirectory(prefix="adopt-") as folder:
            self.remote.fetch(name, path := Path(folder) / name)
            yield path

    def publish(self, manifest: Manifest, work: Path) -> None:
        """Upload the indices, then the manifest. Raises UserError or OutageError."""
        for name in (MANIFEST, PROBLEMS):
            self._retry(name, partial(self._files.delete, name))
        names = [index_path(Path(shard.name)).name for shard in manifest.shards]
        for name in (*names, IMAGE_CLASSES, MANIFEST):
            self._retry(name, partial(self._files.upload, work / name, name))

    def _retry(self, name: str, request: Callable[[], None]) -> None:
        with_retries(request, f"{self.uri}/{name}", RETRIES)
