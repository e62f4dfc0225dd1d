"""The unpublished files of a shard set in an object store, and their publishing.

Each shard is written to the folder for temporary files and uploaded below the prefix of the set.
Object stores cannot rename: publishing copies the shards within the store, and last the manifest.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from pipeline.data.conversion.staging import STAGING_FOLDER, belongs_to_shard_set, files_beside
from pipeline.data.shards.manifest import MANIFEST, Manifest, write_manifest
from pipeline.data.shards.problems import PROBLEMS
from pipeline.data.shards.shard_table import IMAGE_CLASSES, Shard
from pipeline.data.shards.writer import index_path
from pipeline.errors import UserError
from pipeline.storage.folder import Storage, join, split
from pipeline.storage.lease import Lease, LeaseHeldError
from pipeline.storage.redact import error_line
from pipeline.storage.remote import check_uri, with_retries

PARALLEL_REQUESTS = 16
RETRIES = 8
LEASE_SECONDS = 60.0

T = TypeVar("T")


class ObjectStaging:
    """The staging folder of a set at the URI ``out``, with the interface of `Staging`.

    ``work`` is a folder on this machine, which is deleted with the object.
    """

    def __init__(self, out: str) -> None:
        self.out = check_uri(out).rstrip("/")
        try:
            self._files = Storage(self.out)
        except UserError as error:
            raise UserError(
                f"--out {error}; name a folder, or a prefix such as s3://BUCKET/NAME"
            ) from None
        self._temporary = tempfile.TemporaryDirectory(prefix="convert-")
        self.work = Path(self._temporary.name)

    def check(self, overwrite: bool) -> None:
        """Raise UserError unless a shard set may be written at this URI."""
        try:
            names = {name.split("/")[0] for name in self._list()}
            foreign = sorted(name for name in names if not belongs_to_shard_set(name))
            if not foreign:
                self._files.probe()
        except OSError as error:
            raise UserError(f"--out {self.out}: cannot be written: {error_line(error)}") from None
        if foreign:
            raise UserError(
                f"--out {self.out}: contains other files ({foreign[0]}); name an empty or new "
                "prefix"
            )
        if MANIFEST in names and not overwrite:
            raise UserError(
                f"--out {self.out}: already contains a shard set; replace it with --overwrite or "
                "name another prefix"
            )

    def shard_folder(self, number: int) -> str:
        """Return the prefix to which a task uploads its shard."""
        return join(self.out, f"{STAGING_FOLDER}/{number:06d}")

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Lease the prefix of unpublished files. Raises UserError if another conversion holds it.

        Waits until the lease of a conversion that has disappeared expires.
        """
        staging = Storage(join(self.out, STAGING_FOLDER))
        lease = Lease(staging, f"--out {self.out}", LEASE_SECONDS)
        try:
            lease.acquire()
        except LeaseHeldError as error:
            raise UserError(
                f"--out {self.out}: another conversion is writing there, {error.holder}; wait "
                "until it ends"
            ) from None
        try:
            yield
        finally:
            lease.release(delete=True)

    @contextlib.contextmanager
    def report_errors(self) -> Iterator[None]:
        """Turn an OSError into a UserError of one line."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{error.filename or self.out}: {error_line(error.strerror or error)}; no shard "
                "set was written; the same command continues from the finished shards"
            ) from None

    def store(self, manifest: Manifest) -> None:
        """Write the manifest to a local file, still unpublished."""
        write_manifest(manifest, self.work)

    def publish(self, manifest: Manifest, folders: Iterable[str]) -> None:
        """Copy the shards from their ``folders`` into place, then upload the manifest."""
        sizes = self._list()
        self._retry(MANIFEST, lambda: self._files.delete(MANIFEST))
        beside = (PROBLEMS, IMAGE_CLASSES)
        old = [name for name in sizes if name in beside or name.startswith("shard-")]
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            list(pool.map(lambda name: self._retry(name, lambda: self._files.delete(name)), old))
            list(pool.map(self._copy_shard, folders, manifest.shards, repeat(sizes)))
        for name in (*files_beside(manifest), MANIFEST):
            self._retry(name, lambda: self._files.upload(self.work / name, name))  # noqa: B023
        self.discard()

    def discard(self) -> None:
        """Delete unpublished files."""
        with contextlib.suppress(OSError):
            self._files.delete_folder(STAGING_FOLDER)
        self._temporary.cleanup()

    def _copy_shard(self, folder: str, shard: Shard, sizes: dict[str, int]) -> None:
        written = Path(STAGING_FOLDER) / split(folder)[1] / "shard-000000.tar"
        if sizes.get(str(written)) != shard.bytes:
            raise UserError(
                f"{self.out}/{written}: changed or deleted by another conversion; no shard set was "
                "written; run the same command again"
            )
        for source, target in (
            (written, Path(shard.name)),
            (index_path(written), index_path(Path(shard.name))),
        ):
            self._retry(str(target), lambda: self._files.copy(str(source), str(target)))  # noqa: B023

    def _list(self) -> dict[str, int]:
        """Return the size of every file below the URI."""
        return {info.name: info.size for info in self._files.files()}

    def _retry(self, name: str, request: Callable[[], T]) -> T:
        return with_retries(request, f"{self.out}/{name}", RETRIES)


def upload_folder(folder: Path, uri: str, last: str) -> None:
    """Upload the files of a folder, the one called ``last`` after all others. Raises UserError."""
    files = Storage(uri)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
        with_retries(lambda: files.upload(path, path.name), f"{uri}/{path.name}", RETRIES)  # noqa: B023
