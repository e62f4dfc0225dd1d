"""Check a whole shard set: every hash, sample and count. Each fault is one exact line."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.shards.image_classes import encode_image, read_image_classes
from pipeline.data.shards.manifest import (
    Manifest,
    Shard,
    load_manifest,
    local_folder,
    read_problems,
)
from pipeline.data.shards.problems import PROBLEMS
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.shards.shard_table import IMAGE_CLASSES
from pipeline.data.shards.tar import (
    BLOCK,
    INDEX_ROW_BYTES,
    INDEX_TYPE,
    Member,
    TarError,
    parse_header,
    sample_rows,
)
from pipeline.data.shards.writer import index_path
from pipeline.data.transforms.decode import ImageError, decode_image, image_format
from pipeline.errors import OutageError, UserError
from pipeline.storage.checksum import file_sha256
from pipeline.storage.remote import RETRIES, Remote, is_remote


class Verification:
    """The result of a verification: ``faults``, one line each; none if the set is valid.

    ``complete`` is false if samples that the manifest lists were not found.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.faults: list[str] = []
        self.samples = self.samples_without_objects = 0
        self.boxes: Counter[int] = Counter()  # by label
        self.image_classes = bytearray()  # what `IMAGE_CLASSES` should have
        self.complete = True
        self._shard_by_key: dict[str, str] = {}
        self._location_by_image_id: dict[str, str] = {}

    def check_shard(self, shard: Shard, path: Path, index: Path) -> None:
        """Check a shard in a local file, and its index."""
        if not path.is_file():
            self._add(shard, "missing, but the manifest lists it")
            self.complete = False
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
                    self.check_sample(shard, file.fileno(), image, annotation)
            except TarError as error:
                self._add(shard, str(error))
                self._check_rest(shard, file.fileno(), index, len(rows))
                self.complete &= self.samples - before >= shard.samples
            else:
                if len(rows) != shard.samples:
                    self._add(shard, f"{len(rows)} samples, the manifest says {shard.samples}")
        self._check_index(shard, index, rows)

    def check_totals(self) -> None:
        """Compare the counts of the manifest with those of the samples, if all could be read."""
        manifest = self.manifest
        if not self.complete:
            self.faults.append("manifest.json: its counts were not compared, as samples are lost")
            return
        names = enumerate(manifest.classes)
        boxes_per_class = {name: self.boxes[label] for label, name in names}
        for count, found, expected in (
            ("samples", self.samples, manifest.samples),
            (
                "samples_without_objects",
                self.samples_without_objects,
                manifest.samples_without_objects,
            ),
            ("boxes", sum(self.boxes.values()), manifest.boxes),
            *(
                (f"boxes_per_class {name}", boxes_per_class.get(name, 0), expected)
                for name, expected in manifest.boxes_per_class.items()
            ),
        ):
            if found != expected:
                self.faults.append(f"manifest.json: {count} {expected}, the shards have {found}")
        if set(manifest.boxes_per_class) != set(manifest.classes):
            self.faults.append("manifest.json: the classes of boxes_per_class are not its classes")

    def check_problems(self, uri: str) -> None:
        """Compare the list of problems beside the manifest with its counts."""
        try:
            found = Counter(problem.kind for problem in read_problems(uri))
        except UserError as error:
            self.faults.append(str(error))
            return
        expected = Counter(self.manifest.problem_counts)
        for kind in sorted(found | expected):
            if found[kind] != expected[kind]:
                counts = f"{found[kind]} x {kind}, the manifest says {expected[kind]}"
                self.faults.append(f"{PROBLEMS}: {counts}")

    def check_image_classes(self, uri: str) -> None:
        """Compare the classes of each image beside the manifest with the samples."""
        entry = self.manifest.image_classes
        if entry is None:  # an earlier format
            return
        try:
            found = read_image_classes(uri, entry, RETRIES)
        except UserError as error:
            self.faults.append(str(error))
            return
        if self.complete and found != self.image_classes:
            self.faults.append(f"{IMAGE_CLASSES}: does not match the samples")

    def _add(self, shard: Shard, fault: str) -> None:
        self.faults.append(f"{shard.name}: {fault}")

    def check_sample(self, shard: Shard, descriptor: int, image: Member, label: Member) -> None:
        """Check one sample of an open shard, by its two members, and count its boxes."""
        self.samples += 1
        location = f"{shard.name} {image.key}"
        if image.key in self._shard_by_key:
            other = self._shard_by_key[image.key]
            self.faults.append(f"{location}: the key is also in {other}")
        self._shard_by_key[image.key] = shard.name
        try:
            sample = Sample.from_json(os.pread(descriptor, label.size, label.offset))
        except SampleError as error:
            self.faults.append(f"{location}: {error}")
            return
        if sample.image_id in self._location_by_image_id:
            other = self._location_by_image_id[sample.image_id]
            self.faults.append(f"{location}: image_id {sample.image_id!r} is also in {other}")
        self._location_by_image_id[sample.image_id] = location
        classes = len(self.manifest.classes)
        wrong = [n for n in sample.labels if not 0 <= n < classes]
        if wrong:
            self.faults.append(f"{location}: label {wrong[0]} is not one of the {classes} classes")
        self.boxes.update(sample.labels)
        self.image_classes += encode_image(set(sample.object_labels()).difference(wrong), classes)
        self.samples_without_objects += not sample.boxes
        data = os.pread(descriptor, image.size, image.offset)
        try:
            height, width = decode_image(data, upright=False).shape[:2]
        except ImageError as error:
            self.faults.append(f"{location}: {error}")
            return
        if (width, height) != (sample.width, sample.height):
            self.faults.append(
                f"{location}: the image is {width}x{height}, its JSON says "
                f"{sample.width}x{sample.height}"
            )
        if image_format(data) != image.extension:
            self.faults.append(f"{location}: the content of {image.name} is of another format")

    def _check_rest(self, shard: Shard, descriptor: int, index: Path, first: int) -> None:
        """Check the samples after a fault of the tar by the index, as training reads them."""
        if not index.is_file() or index.stat().st_size != shard.samples * INDEX_ROW_BYTES:
            return
        rows = np.fromfile(index, INDEX_TYPE).reshape(-1, 4)[first:].tolist()
        lost: list[tuple[int, Exception]] = []
        for row, (image_at, _, json_at, _) in enumerate(rows, first):
            try:
                image, label = (_read_member(descriptor, at) for at in (image_at, json_at))
                if label.name != f"{image.key}.json":
                    raise TarError(
                        f"member {image.name!r} is paired with {label.name!r} instead of "
                        f"{image.key}.json"
                    )
            except (TarError, OSError) as error:
                lost.append((row, error))
            else:
                self.check_sample(shard, descriptor, image, label)
        if lost:
            (row, reason), *more = lost
            them = f"{row} and {len(more)} after it are" if more else f"{row} is"
            self._add(shard, f"sample {them} lost: {reason}")

    def _check_index(self, shard: Shard, index: Path, rows: list[tuple[int, ...]]) -> None:
        if not index.is_file():
            self.faults.append(f"{index.name}: missing, but {shard.name} needs it")
            return
        expected = np.array(rows, dtype=INDEX_TYPE).reshape(-1, 4).tobytes()
        found = index.read_bytes()
        if len(rows) < shard.samples:  # the fault of the shard itself is reported already
            found = found[: len(expected)]
        if found != expected:
            self.faults.append(f"{index.name}: does not match {shard.name}")


def _read_member(descriptor: int, at: int) -> Member:
    """Return the member whose data start at a byte.

    Raises TarError, or OSError where a file cannot have such an offset.
    """
    header = at - BLOCK
    member = parse_header(os.pread(descriptor, BLOCK, header), header)
    if at + member.size > os.fstat(descriptor).st_size:
        raise TarError(f"truncated inside member {member.name!r}")
    return member


def verify(uri: str) -> Verification:
    """Check the shard set in a folder or at a URL. Raises UserError without a usable manifest.

    Remote shards are fetched one at a time to a temporary folder, not to the cache.
    """
    verification = Verification(load_manifest(uri))
    for shard in verification.manifest.shards:
        with _fetch(uri, shard, verification) as path:
            if path is not None:
                verification.check_shard(shard, path, index_path(path))
    verification.check_totals()
    verification.check_problems(uri)
    verification.check_image_classes(uri)
    if not is_remote(uri):
        known = {shard.name for shard in verification.manifest.shards}
        for path in sorted(local_folder(uri).glob("*.tar")):
            if path.name not in known:
                verification.faults.append(f"{path.name}: not in the manifest")
    return verification


@contextlib.contextmanager
def _fetch(uri: str, shard: Shard, verification: Verification) -> Iterator[Path | None]:
    """Yield the local path of the shard, with its index beside it; None if the transfer failed."""
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
        except (UserError, OutageError) as error:
            verification.faults.append(str(error))
            verification.complete = False
            yield None
        else:
            yield path
