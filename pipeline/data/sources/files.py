"""The files of a source by name: those of a folder, of a tar or of a zip, read where they lie.

A path may lead into an archive: ``VOC.tar/VOCdevkit/VOC2007``. Nothing is ever unpacked to disk,
and a file is reached only by a name that was listed, so that no name leads out of the source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline.data.shards.manifest import Problem
from pipeline.data.sources.archives import Member, Refused, is_archive, list_archive
from pipeline.errors import UserError

# Annotation files of one image; whole data sets are described in files of up to LARGEST_TEXT.
LARGEST_LABEL = 16 * 2**20
LARGEST_TEXT = 4 * 2**30
MOST_FILES = 50_000_000


class FileError(ValueError):
    """A file that cannot be read; the message says why."""


class File(Protocol):
    """A file to read, here or in another process; its ``repr`` changes when its content does."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, limit: int) -> bytes:
        """All bytes. Raises OSError, or ValueError where they are damaged or over the limit."""


@dataclass(frozen=True)
class LooseFile:
    """A file in a folder."""

    path: str
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> LooseFile:
        """The file as it is now. Raises OSError."""
        found = path.stat()
        return cls(str(path), found.st_size, found.st_mtime_ns)

    def read(self, limit: int) -> bytes:
        """All bytes. Raises OSError, or ValueError where they are too many."""
        with open(self.path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"file is larger than the limit of {limit} bytes")
        return data


class Files:
    """Files below a place in a folder or an archive, by their POSIX names relative to it."""

    def __init__(self, place: str, found: dict[str, Path | Member], refused: list[Refused]) -> None:
        self.place, self.refused, self._found = place, refused, found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    @property
    def name(self) -> str:
        """What to call the data set: its folder, or its archive without the suffix."""
        name = Path(self.place).resolve().name
        return name.removesuffix(".tar").removesuffix(".zip")

    def problems(self) -> list[Problem]:
        """What was not taken from the archive."""
        return [
            Problem(file=name, kind="member skipped", reason=reason)
            for name, reason in self.refused
        ]

    def names(self, folder: str, suffixes: tuple[str, ...]) -> list[str]:
        """Names directly in a folder, with one of these lower-case suffixes; sorted."""
        return sorted(
            name
            for name in self._found
            if name.rpartition("/")[0] == folder and name.lower().endswith(suffixes)
        )

    def file(self, name: str) -> File:
        """The file of that name. Raises FileError where there is none."""
        found = self._found.get(name)
        if isinstance(found, Member):
            return found
        try:
            if found is not None:
                return LooseFile.of(found)
            raise FileError("not found")
        except FileNotFoundError:
            raise FileError("not found") from None
        except OSError as error:
            raise FileError(f"cannot be read: {error.strerror}") from None

    def text(self, name: str, limit: int = LARGEST_LABEL) -> bytes:
        """The bytes of the file of that name. Raises FileError."""
        return read_file(self.file(name), limit)

    def below(self, folder: str) -> Files:
        """The files below a folder of this place."""
        if folder in ("", "."):
            return self
        start = folder.rstrip("/") + "/"
        found = {n.removeprefix(start): f for n, f in self._found.items() if n.startswith(start)}
        return Files(f"{self.place}/{folder}", found, self.refused)


def read_file(file: File, limit: int) -> bytes:
    """The bytes of a file. Raises FileError."""
    try:
        return file.read(limit)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise FileError(str(error)) from None


def open_files(path: Path, option: str) -> Files:
    """List a folder, an archive, or a folder inside an archive. Raises UserError."""
    if path.is_dir():
        return Files(str(path), dict(_walk(path)), [])
    archive, inside = _archive_of(path)
    if archive is None:
        if path.is_file():
            raise UserError(f"{option} {path}: {_what_it_is(path)}")
        raise UserError(f"{option} {path}: no such folder or archive")
    members, refused = list_archive(archive)
    found = {name: member for name, member in members.items() if not _litter(name)}
    files = Files(str(archive), {name: found[name] for name in sorted(found)}, refused)
    below = files.below(inside)
    if inside and not list(below):
        raise UserError(f"{option} {path}: {archive} has no files in {inside}")
    if not list(below):
        raise UserError(f"{option} {path}: the archive holds no files")
    return below


def open_file(path: Path, option: str, limit: int = LARGEST_TEXT) -> bytes:
    """The bytes of one file, loose or in an archive. Raises UserError."""
    archive, inside = (None, "") if path.is_file() else _archive_of(path)
    try:
        if archive is None:
            return read_file(LooseFile.of(path.absolute()), limit)
        members, _ = list_archive(archive)
        if inside not in members:
            raise FileError(f"{archive} has no file {inside}")
        return read_file(members[inside], limit)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    except FileError as error:
        raise UserError(f"{option} {path}: {error}") from None


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return "a zip whose end is missing; fetch it again"
    return "neither a folder, nor a tar or zip"


def plain_name(name: str) -> str | None:
    """A relative POSIX name without ``.``, or None for one that is absolute or has ``..``."""
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        return None
    return "/".join(parts)


def _archive_of(path: Path) -> tuple[Path | None, str]:
    for parent in (path, *path.parents):
        if parent.is_file():
            inside = path.relative_to(parent).as_posix()
            return (parent, "" if inside == "." else inside) if is_archive(parent) else (None, "")
    return None, ""


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder in the order of their names, following links but no circle."""
    root = root.absolute()
    seen = set()
    count = 0
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        relative = Path(folder).relative_to(root)
        for name in sorted(names):
            count += 1
            if count > MOST_FILES:
                raise UserError(f"{root}: more than {MOST_FILES} files; name the data set's folder")
            inside = (relative / name).as_posix()
            if not _litter(inside):
                yield inside, Path(folder) / name


def _litter(name: str) -> bool:
    """What macOS adds to archives and folders."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith("._")
