"""The unpublished files of a shard set, in a subfolder of its folder, and their publishing."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.conversion.shard_task import RESULT_FILE
from pipeline.data.shards.manifest import MANIFEST, Manifest, local_folder, write_manifest
from pipeline.data.shards.problems import PROBLEMS
from pipeline.data.shards.shard_table import IMAGE_CLASSES
from pipeline.data.shards.writer import index_path
from pipeline.errors import UserError
from pipeline.storage.durable import sync_folder
from pipeline.storage.lock import try_lock_file
from pipeline.storage.remote import is_remote

if TYPE_CHECKING:
    from pipeline.data.conversion.object_staging import ObjectStaging

STAGING_FOLDER = ".partial"  # in the folder of the set


def belongs_to_shard_set(name: str) -> bool:
    """Return whether a conversion writes a file or folder of that name."""
    return name in (MANIFEST, PROBLEMS, IMAGE_CLASSES, STAGING_FOLDER) or bool(
        re.fullmatch(r"shard-\d+\.(tar|index)", name)
    )


def files_beside(manifest: Manifest) -> list[str]:
    """Return the names of the files that the driver of a conversion writes beside the manifest."""
    problems = [PROBLEMS] if manifest.problem_counts else []
    return [*problems, *([IMAGE_CLASSES] if manifest.image_classes else [])]


def open_staging(out: Path | str) -> Staging | ObjectStaging:
    """Return the staging of a set in a folder or at the URI of an object store.

    Raises UserError if no set can be written to such a URI.
    """
    if not is_remote(out):
        return Staging(local_folder(out))
    from pipeline.data.conversion.object_staging import ObjectStaging  # slow to import

    return ObjectStaging(str(out))


class Staging:
    """The staging folder of a set in the folder ``out``.

    It has a folder for each shard, and ``work`` for the files that the driver writes.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.absolute() / STAGING_FOLDER
        self.work = self.folder

    def check(self, overwrite: bool) -> None:
        """Raise UserError unless a shard set may be written into this folder."""
        out = self.out
        if not out.exists():
            return
        if not out.is_dir():
            raise UserError(f"--out {out}: is a file; name a directory")
        foreign = [path.name for path in out.iterdir() if not belongs_to_shard_set(path.name)]
        if foreign:
            raise UserError(
                f"--out {out}: contains other files ({sorted(foreign)[0]}); name an empty or new "
                "directory"
            )
        if (out / MANIFEST).exists() and not overwrite:
            raise UserError(
                f"--out {out}: already contains a shard set; replace it with --overwrite or name "
                "another directory"
            )

    def shard_folder(self, number: int) -> str:
        """Return the folder in which a task writes its shard."""
        return str(self.folder / f"{number:06d}")

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Create and lock the folder. At the end, delete what another conversion cannot reuse.

        Raises UserError if another conversion holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with try_lock_file(self.folder / "lock", 0, required=False) as held:
            if not held:
                raise UserError(
                    f"--out {self.out}: another conversion is writing there; wait until it ends"
                )
            try:
                yield
            except BaseException:
                for name in (PROBLEMS, IMAGE_CLASSES):
                    (self.folder / name).unlink(missing_ok=True)
                raise
            finally:
                for path in self.folder.iterdir():
                    if path.is_dir() and not (path / RESULT_FILE).exists():
                        shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def report_errors(self) -> Iterator[None]:
        """Turn an OSError into a UserError of one line; delete folders that are left empty."""
        try:
            yield
        except OSError as error:
            finished = any(self.folder.glob(f"*/{RESULT_FILE}"))
            hint = "; the same command continues from the finished shards" if finished else ""
            raise UserError(
                f"{error.filename or self.out}: {error.strerror}; no shard set was written{hint}"
            ) from None
        finally:
            for folder in (self.folder, self.out):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def store(self, manifest: Manifest) -> None:
        """Write the manifest, still unpublished: publishing then needs no more disk space."""
        write_manifest(manifest, self.folder)

    def publish(self, manifest: Manifest, folders: Iterable[str]) -> None:
        """Move the shards from their ``folders`` into place, and last the manifest."""
        out = self.out
        (out / MANIFEST).unlink(missing_ok=True)
        sync_folder(out)
        for path in (*out.glob("shard-*"), out / PROBLEMS, out / IMAGE_CLASSES):
            path.unlink(missing_ok=True)
        for folder, shard in zip(folders, manifest.shards, strict=True):
            written = Path(folder) / "shard-000000.tar"
            written.replace(out / shard.name)
            index_path(written).replace(index_path(out / shard.name))
        for name in files_beside(manifest):
            (self.folder / name).replace(out / name)
        sync_folder(out)
        (self.folder / MANIFEST).replace(out / MANIFEST)
        sync_folder(out)
        self.discard()

    def discard(self) -> None:
        """Delete unpublished files, and the folder of the set if it is empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()
