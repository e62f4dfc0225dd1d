"""A folder for runs: on a local disk, on a shared file system, or in an object store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowInvalid, fs

from pipeline.errors import UserError
from pipeline.storage.durable import sync_file, write_durably
from pipeline.storage.redact import error_line, mask


class FileInfo(NamedTuple):
    """A file below a folder: relative name, bytes, and seconds since 1970 of its last change."""

    name: str
    size: int
    modified: float


class Storage:
    """Files below one folder or URI, through pyarrow. Names are relative, with ``/``.

    A file that `write` has written survives a power cut, and readers never see half of it.
    Operations raise OSError.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._files, self._root = fs.FileSystem.from_uri(self.uri)
        except (ArrowInvalid, OSError) as error:
            raise UserError(
                f"{mask(self.uri)!r} is not an absolute path or URI: {error_line(error)}"
            ) from None
        self._local = isinstance(self._files, fs.LocalFileSystem)

    def __str__(self) -> str:
        return mask(self.uri)

    def child(self, name: str) -> Storage:
        """Return the folder ``name`` in this one."""
        return Storage(join(self.uri, name))

    def create(self) -> None:
        """Create the folder and its parents."""
        self._files.create_dir(self._root, recursive=True)

    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""
        found = self._files.get_file_info(self._path(name)).type
        return bool(found != fs.FileType.NotFound)

    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one."""
        return sorted(i.base_name for i in self._list() if i.type == fs.FileType.Directory)

    def files(self) -> list[FileInfo]:
        """Return all files, including those in folders below."""
        skip = len(self._root.rstrip("/")) + 1
        return [
            FileInfo(i.path[skip:], i.size, i.mtime_ns / 1e9 if i.mtime_ns else 0.0)
            for i in self._list(recursive=True)
            if i.type == fs.FileType.File
        ]

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self._files.open_input_stream(self._path(name)) as stream:
            data: bytes = stream.read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file atomically."""
        if not self._local:  # an object becomes visible when its upload is complete
            with self._files.open_output_stream(self._path(name)) as stream:
                stream.write(data)
            return
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a large file to write it in pieces; delete it if the block raises.

        Readers may see it incomplete; in object stores only after the block raised, for a moment.
        """
        stream = self._open(name)
        try:
            with stream:
                yield stream
                if self._local:
                    sync_file(stream)
        except BaseException:
            # pyarrow cannot abort an upload: closing the stream completes a shorter object.
            with contextlib.suppress(OSError):
                self.delete(name)
            raise

    def _open(self, name: str) -> Any:
        if not self._local:
            return self._files.open_output_stream(self._path(name))
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")

    def move(self, name: str, target: str) -> None:
        """Rename a file."""
        self._files.move(self._path(name), self._path(target))

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder and its content, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self._path(name))

    def probe(self) -> None:
        """Write, read and delete a small file. Raises OSError where one of them fails."""
        name, data = f".probe-{uuid.uuid4().hex}", os.urandom(64)
        self.write(name, data)
        found = self.read(name)
        self.delete(name)
        if found != data:
            raise OSError("the bytes read are not the bytes written")

    def local_path(self, name: str) -> Path | None:
        """Return the path of a file on a mounted file system; None in an object store."""
        return Path(self._path(name)) if self._local else None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _list(self, recursive: bool = False) -> list[Any]:
        selector = fs.FileSelector(self._root, recursive=recursive, allow_not_found=True)
        return list(self._files.get_file_info(selector))


def absolute(uri: str) -> str:
    """Return a URI as it is, and a path as an absolute one."""
    return uri if "://" in uri else str(Path(uri).absolute())


def join(uri: str, name: str) -> str:
    """Return ``name`` below a folder or URI; options after ``?`` stay at the end."""
    base, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"
