"""A folder for runs: on a local disk, on a shared file system, or in an object store."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from pyarrow import ArrowInvalid, fs

from pipeline.errors import OutageError, UserError
from pipeline.storage.durable import sync_file, write_durably
from pipeline.storage.redact import error_line, mask

# What a file system over a network reports while its server is away.
NETWORK_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO", "ECONNREFUSED", "ECONNRESET"),
        *("ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
)
# Responses of object stores that another attempt would get again; pyarrow has them as text only.
_REJECTION = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
    r"|NO_SUCH_(BUCKET|KEY)|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND"
    r"|HTTP status 4(?!08|25|29)\d\d|[Bb]ucket .* not found"
)
COPY_BYTES = 2**20  # at a time
_P = ParamSpec("_P")
_T = TypeVar("_T")


class StoreOutage(OutageError, OSError):
    """A store does not respond; an OSError too, for callers that handle one."""


def _raises_outages(
    method: Callable[Concatenate[Storage, _P], _T],
) -> Callable[Concatenate[Storage, _P], _T]:
    """Raise StoreOutage instead of the OSErrors of a method that a later attempt may pass."""

    @functools.wraps(method)
    def call(self: Storage, *arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return method(self, *arguments, **options)
        except OSError as error:
            if isinstance(error, StoreOutage) or not _is_outage(error, self._local):
                raise
            raise StoreOutage(f"{self}: {error_line(error)}") from error

    return call


def _is_outage(error: OSError, local: bool) -> bool:
    if local or error.errno is not None:
        return error.errno in NETWORK_ERRORS
    return not _REJECTION.search(str(error))


class FileInfo(NamedTuple):
    """A file below a folder: relative name, bytes, and seconds since 1970 of its last change."""

    name: str
    size: int
    modified: float


class S3Location(NamedTuple):
    """An object in S3, for clients other than pyarrow's."""

    bucket: str
    key: str
    region: str


class Storage:
    """Files below one folder or URI, through pyarrow. Names are relative, with ``/``.

    A file that `write` has written survives a power cut, and readers never see half of it.
    Operations raise OSError, and its subclass StoreOutage if the store does not respond.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._files, self._root = fs.FileSystem.from_uri(self.uri)
        except (ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and _is_outage(error, local="://" not in uri):
                raise StoreOutage(f"{self}: {error_line(error)}") from None
            raise UserError(
                f"{mask(self.uri)!r} is not an absolute path or URI: {error_line(error)}"
            ) from None
        self._local = isinstance(self._files, fs.LocalFileSystem)

    def __str__(self) -> str:
        return mask(self.uri)

    def child(self, name: str) -> Storage:
        """Return the folder ``name`` in this one."""
        return Storage(join(self.uri, name))

    @_raises_outages
    def create(self) -> None:
        """Create the folder and its parents."""
        self._files.create_dir(self._root, recursive=True)

    @_raises_outages
    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""
        found = self._files.get_file_info(self._path(name)).type
        return bool(found != fs.FileType.NotFound)

    @_raises_outages
    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one."""
        return sorted(i.base_name for i in self._list() if i.type == fs.FileType.Directory)

    @_raises_outages
    def files(self) -> list[FileInfo]:
        """Return all files, including those in folders below."""
        skip = len(self._root.rstrip("/")) + 1
        return [
            FileInfo(i.path[skip:], i.size, i.mtime_ns / 1e9 if i.mtime_ns else 0.0)
            for i in self._list(recursive=True)
            if i.type == fs.FileType.File
        ]

    @_raises_outages
    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self._files.open_input_stream(self._path(name)) as stream:
            data: bytes = stream.read()
        return data

    @_raises_outages
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

    @_raises_outages
    def _open(self, name: str) -> Any:
        if not self._local:
            return self._files.open_output_stream(self._path(name))
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to ``name``; delete it there if that fails."""
        with path.open("rb") as source, self.open(name) as target:
            shutil.copyfileobj(source, target, COPY_BYTES)

    @_raises_outages
    def copy(self, name: str, target: str) -> None:
        """Copy a file within the folder; object stores do so without a transfer."""
        self._files.copy_file(self._path(name), self._path(target))

    @_raises_outages
    def move(self, name: str, target: str) -> None:
        """Rename a file."""
        self._files.move(self._path(name), self._path(target))

    @_raises_outages
    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    @_raises_outages
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

    def s3_location(self, name: str) -> S3Location | None:
        """Return where a file is in S3; None in any other storage."""
        if not isinstance(self._files, fs.S3FileSystem):
            return None
        bucket, _, key = self._path(name).partition("/")
        return S3Location(bucket, key, self._files.region)

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


def split(uri: str) -> tuple[str, str]:
    """Return the parent and the name of a folder or URI, the inverse of `join`."""
    base, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    parent, _, name = base.rstrip("/").rpartition("/")
    return f"{parent}{mark}{options}", name
