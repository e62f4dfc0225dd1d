"""Checks a whole shard set: every hash, every sample, every count; says exactly what is wrong."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.shards.manifest import Manifest, Shard, load_manifest, local_folder
from pipeline.data.shards.reader import INDEX_ROW_BYTES
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.shards.tar import (
    BLOCK,
    INDEX_TYPE,
    Member,
    TarError,
    parse_header,
    sample_rows,
)
from pipeline.data.shards.writer import index_path
from pipeline.data.transforms.decode import ImageError, decode_image, image_format
from pipeline.errors import UserError
from pipeline.storage.checksum import file_sha256
from pipeline.storage.remote import Remote, is_remote


class Verification:
    """What was found: ``faults``, one line each; empty where the set is sound.

    ``whole``: all samples that the shards should have were found.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.faults: list[str] = []
        self.samples = 0
        self._boxes: Counter[int] = Counter()
        self._empty = 0
        self.whole = True
        self._keys: dict[str, str] = {}
        self._images: dict[str, str] = {}

    def check_shard(self, shard: Shard, path: Path, index: Path) -> None:
        """Check a shard that lies in a local file, and its index."""
        if not path.is_file():
            self.faults.append(f"{shard.name}: absent, though the manifest needs it")
            self.whole = False
            return
        if path.stat().st_size != shard.bytes:
            self._add(shard, f"{path.stat().st_size} bytes, the manifest says {shard.bytes}")
        if (found := file_sha256(path)) != shard.sha256:
            self._add(shard, f"sha256 {found[:12]}..., the manifest says {shard.sha256[:12]}...")
        before, rows = self.samples, list[tuple[int, ...]]()
        with path.open("rb") as file:
            try:
                for image, annotation in sample_rows(file.fileno()):
                    rows.append((*image[1:], *annotation[1:]))
                    self._check_sample(shard, file.fileno(), image, annotation)
            except TarError as error:
                self._add(shard, str(error))
                self._check_rest(shard, file.fileno(), index, len(rows))
                self.whole &= self.samples - before >= shard.samples
            else:
                if len(rows) != shard.samples:
                    self._add(shard, f"{len(rows)} samples, the manifest says {shard.samples}")
        self._check_index(shard, index, rows)

    def check_totals(self) -> None:
        """Compare the manifest's counts with those of the samples, if all could be read."""
        of = self.manifest
        if not self.whole:
            self.faults.append("manifest.json: its counts were not compared, as samples are lost")
            return
        names = enumerate(of.classes)
        per_class = {name: self._boxes[label] for label, name in names}
        for what, found, said in (
            ("samples", self.samples, of.samples),
            ("samples_without_objects", self._empty, of.samples_without_objects),
            ("boxes", sum(self._boxes.values()), of.boxes),
            *(
                (f"boxes_per_class {name}", per_class.get(name, 0), said)
                for name, said in of.boxes_per_class.items()
            ),
        ):
            if found != said:
                self.faults.append(f"manifest.json: {what} {said}, the shards have {found}")
        if set(of.boxes_per_class) != set(of.classes):
            self.faults.append("manifest.json: boxes_per_class does not name the classes")

    def _add(self, shard: Shard, fault: str) -> None:
        self.faults.append(f"{shard.name}: {fault}")

    def _check_sample(self, shard: Shard, descriptor: int, image: Member, label: Member) -> None:
        self.samples += 1
        where = f"{shard.name} {image.key}"
        if image.key in self._keys:
            self.faults.append(f"{where}: the key is in {self._keys[image.key]} as well")
        self._keys[image.key] = shard.name
        try:
            sample = Sample.from_json(os.pread(descriptor, label.size, label.offset))
        except SampleError as error:
            self.faults.append(f"{where}: {error}")
            return
        if sample.image_id in self._images:
            self.faults.append(
                f"{where}: image_id {sample.image_id!r} is that of {self._images[sample.image_id]}"
            )
        self._images[sample.image_id] = where
        wrong = [n for n in sample.labels if not 0 <= n < len(self.manifest.classes)]
        if wrong:
            self.faults.append(
                f"{where}: label {wrong[0]} is not one of the {len(self.manifest.classes)} classes"
            )
        self._boxes.update(sample.labels)
        self._empty += not sample.boxes
        data = os.pread(descriptor, image.size, image.offset)
        try:
            height, width = decode_image(data, upright=False).shape[:2]
        except ImageError as error:
            self.faults.append(f"{where}: {error}")
            return
        if (width, height) != (sample.width, sample.height):
            self.faults.append(
                f"{where}: the picture is {width}x{height}, its JSON says "
                f"{sample.width}x{sample.height}"
            )
        if image_format(data) != image.extension:
            self.faults.append(f"{where}: {image.name} holds something else than its name says")

    def _check_rest(self, shard: Shard, descriptor: int, index: Path, first: int) -> None:
        """Check the samples behind a fault of the tar, as training finds them: by the index."""
        if not index.is_file() or index.stat().st_size != shard.samples * INDEX_ROW_BYTES:
            return
        rows = np.fromfile(index, INDEX_TYPE).reshape(-1, 4)[first:].tolist()
        lost: list[tuple[int, Exception]] = []
        for row, (image_at, _, json_at, _) in enumerate(rows, first):
            try:
                image, label = (_member(descriptor, at) for at in (image_at, json_at))
                if label.name != f"{image.key}.json":
                    raise TarError(f"member {image.name!r} has {label.name!r} for its JSON")
            except (TarError, OSError) as error:
                lost.append((row, error))
            else:
                self._check_sample(shard, descriptor, image, label)
        if lost:
            (row, reason), *more = lost
            them = f"{row} and {len(more)} behind it are" if more else f"{row} is"
            self._add(shard, f"sample {them} lost: {reason}")

    def _check_index(self, shard: Shard, index: Path, rows: list[tuple[int, ...]]) -> None:
        if not index.is_file():
            self.faults.append(f"{index.name}: absent, though {shard.name} needs it")
            return
        expected = np.array(rows, dtype=INDEX_TYPE).reshape(-1, 4).tobytes()
        found = index.read_bytes()
        if len(rows) < shard.samples:  # the shard's own fault is told already
            found = found[: len(expected)]
        if found != expected:
            self.faults.append(f"{index.name}: does not match {shard.name}")


def _member(descriptor: int, at: int) -> Member:
    """The member whose data lie at a byte. Raises TarError, or OSError where no file has that."""
    header = at - BLOCK
    member = parse_header(os.pread(descriptor, BLOCK, header), header)
    if at + member.size > os.fstat(descriptor).st_size:
        raise TarError(f"cut inside member {member.name!r}")
    return member


def verify(uri: str) -> Verification:
    """Check the shard set at a folder or URL. Raises UserError if it has no usable manifest.

    Remote shards are brought one at a time to a temporary folder, past the cache.
    """
    verification = Verification(load_manifest(uri))
    for shard in verification.manifest.shards:
        with _local(uri, shard, verification) as path:
            if path is not None:
                verification.check_shard(shard, path, index_path(path))
    verification.check_totals()
    if not is_remote(uri):
        known = {shard.name for shard in verification.manifest.shards}
        for path in sorted(local_folder(uri).glob("*.tar")):
            if path.name not in known:
                verification.faults.append(f"{path.name}: not in the manifest")
    return verification


@contextlib.contextmanager
def _local(uri: str, shard: Shard, verification: Verification) -> Iterator[Path | None]:
    """A folder path that holds the shard and its index, as far as they exist."""
    if not is_remote(uri):
        yield local_folder(uri) / shard.name
        return
    remote = Remote(uri)
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        path = Path(folder) / shard.name
        try:
            for file in (path, index_path(path)):
                with contextlib.suppress(FileNotFoundError):
                    remote.fetch(file.name, file)
        except UserError as error:
            verification.faults.append(str(error))
            verification.whole = False
            yield None
        else:
            yield path
