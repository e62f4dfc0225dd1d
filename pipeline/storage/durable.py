"""Durable writes to a local file system: write to a draft, fsync, rename, fsync the folder.

A file written here is complete under its name or absent from it, whenever the process is killed or
the power fails, and it survives a power cut once the call has returned.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

# Network file systems that make renames durable on their own reject the fsync of a folder, and a
# folder without read permission cannot be opened for it.
_REJECTED = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
    *(errno.EBADF, errno.EACCES, errno.EPERM),
}


@contextlib.contextmanager
def open_durably(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a draft beside ``path`` for writing; rename it to ``path`` when the block ends.

    ``mode`` are its permissions before the umask. When the block raises, the draft is deleted and
    ``path`` stays as it was. Raises OSError.
    """
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield cast("BinaryIO", file)
            sync_file(file)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Create or replace a file as `open_durably` does."""
    with open_durably(path, mode) as file:
        file.write(data)


def sync_file(file: IO[Any] | int) -> None:
    """Force the content of an open file, or of a descriptor, to the disk. Raises OSError."""
    if not isinstance(file, int):
        file.flush()
        file = file.fileno()
    os.fsync(file)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where its file system supports it.

    Raises OSError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _REJECTED:
            raise
