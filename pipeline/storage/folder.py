"""A folder for runs: on a local disk, on one that nodes share, or in an object store."""

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
from pipeline.storage.redact import mask


class File(NamedTuple):
    """A file of the folder: its name below it, size in bytes, seconds since 1970 of its change."""

    name: str
    size: int
    changed: float


class Storage:
    """Files below one folder or URI, through pyarrow. Names are relative, with ``/``.

    What `write` has returned from survives a power cut, and nobody ever sees half of it.
    Operations raise OSError.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._files, self._root = fs.FileSystem.from_uri(self.uri)
        except (ArrowInvalid, OSError) as error:
            raise UserError(
                f"{mask(self.uri)!r} is no absolute folder or URI: {_line(error)}"
            ) from None
        self._local = isinstance(self._files, fs.LocalFileSystem)

    def __str__(self) -> str:
        return mask(self.uri)

    def child(self, name: str) -> Storage:
        """The folder ``name`` in this one."""
        return Storage(join(self.uri, name))

    def create(self) -> None:
        """Make the folder and those above it."""
        self._files.create_dir(self._root, recursive=True)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        found = self._files.get_file_info(self._path(name)).type
        return bool(found != fs.FileType.NotFound)

    def folders(self) -> list[str]:
        """The names of the folders directly in this one."""
        return sorted(i.base_name for i in self._list() if i.type == fs.FileType.Directory)

    def files(self) -> list[File]:
        """All files, of folders in this one too."""
        skip = len(self._root.rstrip("/")) + 1
        return [
            File(i.path[skip:], i.size, i.mtime_ns / 1e9 if i.mtime_ns else 0.0)
            for i in self._list(recursive=True)
            if i.type == fs.FileType.File
        ]

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._files.open_input_stream(self._path(name)) as stream:
            data: bytes = stream.read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file in one instant."""
        if not self._local:  # an object appears whole, when its upload ends
            with self.open(name) as stream:
                stream.write(data)
            return
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Write a large file bit by bit; readers may see it unfinished, except in object stores."""
        if not self._local:
            with self._files.open_output_stream(self._path(name)) as stream:
                yield stream
            return
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield file
            sync_file(file)

    def move(self, name: str, target: str) -> None:
        """Rename a file."""
        self._files.move(self._path(name), self._path(target))

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder and all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self._path(name))

    def probe(self) -> None:
        """Write, read and delete a small file. Raises OSError where one of them does not work."""
        name, data = f".probe-{uuid.uuid4().hex}", os.urandom(64)
        self.write(name, data)
        found = self.read(name)
        self.delete(name)
        if found != data:
            raise OSError("what was written is not what is read")

    def local_path(self, name: str) -> Path | None:
        """Where such a file lies; None in an object store."""
        return Path(self._path(name)) if self._local else None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _list(self, recursive: bool = False) -> list[Any]:
        selector = fs.FileSelector(self._root, recursive=recursive, allow_not_found=True)
        return list(self._files.get_file_info(selector))


def absolute(uri: str) -> str:
    """A URI as it is, a folder from the root on."""
    return uri if "://" in uri else str(Path(uri).absolute())


def join(uri: str, name: str) -> str:
    """``name`` below a folder or URI; options after ``?`` stay at the end."""
    base, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
