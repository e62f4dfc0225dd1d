"""Access the files of a source by name, in a folder, a tar or a zip.

A path may lead into an archive: ``VOC.tar/VOCdevkit/VOC2007``. Nothing is unpacked to disk. Files
are looked up in a listing only, which keeps names such as ``../x`` inside the source.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.archives import SkippedMember, is_archive, list_archive
from pipeline.data.sources.paths import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from pipeline.data.transforms.decode import image_format
from pipeline.errors import UserError
from pipeline.progress import counted

MAX_LABEL_BYTES = 16 * 2**20  # annotations of one image
MAX_TEXT_BYTES = 4 * 2**30  # annotations of a whole data set
MAX_FILES = 50_000_000
_SIGNATURE_BYTES = 16
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


class FileError(ValueError):
    """A file that cannot be read; the message gives the reason."""


class File(Protocol):
    """A file to read in any process; its ``repr`` changes when its content does."""

    @property
    def size(self) -> int:
        """Return the size in bytes."""

    def read(self, limit: int) -> bytes:
        """Return all bytes. Raises OSError, or ValueError if they are damaged or over the limit."""

    def read_start(self, limit: int) -> bytes:
        """Return about the first ``limit`` bytes, unchecked. Raises OSError or ValueError."""


@dataclass(frozen=True)
class LooseFile:
    """A file in a folder."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> LooseFile:
        """Return the file with its current size and time. Raises OSError."""
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return cls(str(path), found.st_size, found.st_mtime_ns)

    def read(self, limit: int) -> bytes:
        """Return all bytes. Raises OSError, or ValueError if they are over the limit."""
        with open(self.path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"file is larger than the limit of {limit} bytes")
        return data

    def read_start(self, limit: int) -> bytes:
        """Return the first ``limit`` bytes. Raises OSError."""
        with open(self.path, "rb", buffering=0) as file:
            return file.read(limit)


class Files:
    """Files below a folder, on disk or in an archive, by their POSIX names relative to it."""

    def __init__(
        self, location: str, found: dict[str, File | None], skipped: list[SkippedMember]
    ) -> None:
        # Loose files are listed by name alone: a path for each would take 300 bytes.
        self.location, self.skipped, self._found = location, skipped, found
        self._folder = Path(location).absolute()

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    @property
    def name(self) -> str:
        """Return a name for the data set: its folder's, or its archive's without the suffix."""
        name = Path(self.location).resolve().name
        return name.removesuffix(".tar").removesuffix(".zip")

    def problems(self) -> list[Problem]:
        """Return a problem for each skipped member, and for each archive among the files."""
        reason = "an archive inside the source is not read; unpack it"
        return [
            *(Problem(file=n, kind="member skipped", reason=why) for n, why in self.skipped),
            *(Problem(file=n, kind="note", reason=reason) for n in _archives(self)),
        ]

    def names(self, folder: str, suffixes: tuple[str, ...]) -> list[str]:
        """Return the sorted names directly in a folder with one of these lower-case suffixes."""
        return sorted(
            name
            for name in self._found
            if name.rpartition("/")[0] == folder and name.lower().endswith(suffixes)
        )

    def file(self, name: str) -> File:
        """Return the file of that name. Raises FileError if it does not exist."""
        if name not in self._found:
            raise FileError("not found")
        if listed := self._found[name]:
            return listed
        try:
            return LooseFile.of(self._folder / name)
        except FileNotFoundError:
            raise FileError("not found") from None
        except OSError as error:
            raise FileError(f"cannot be read: {error.strerror}") from None

    def read_bytes(self, name: str, limit: int = MAX_LABEL_BYTES) -> bytes:
        """Return the bytes of the file of that name. Raises FileError."""
        return read_file(self.file(name), limit)

    def subfolder(self, folder: str) -> Files:
        """Return the files below a folder of these."""
        if folder in ("", "."):
            return self
        start = folder.rstrip("/") + "/"
        found = {n.removeprefix(start): f for n, f in self._found.items() if n.startswith(start)}
        return Files(f"{self.location}/{folder}", found, self.skipped)


def read_file(file: File, limit: int) -> bytes:
    """Return the bytes of a file. Raises FileError."""
    try:
        return file.read(limit)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise FileError(str(error)) from None


def open_files(path: Path, option: str) -> Files:
    """List a folder, an archive, or a folder inside an archive. Raises UserError."""
    if path.is_dir():
        files = _list_folder(path)
        _check_for_images(files, path, option, "give that")
        return files
    archive, inside = split_archive_path(path)
    if archive is None:
        if path.is_file():
            raise UserError(f"{option} {path}: {_describe_file(path)}")
        raise UserError(f"{option} {path}: no such directory or archive")
    members, skipped = list_archive(archive)
    found = {name: member for name, member in members.items() if not _is_macos_metadata(name)}
    files = Files(str(archive), {name: found[name] for name in sorted(found)}, skipped)
    below = files.subfolder(inside)
    if inside and not below:
        raise UserError(f"{option} {path}: {archive} has no files in {inside}")
    if not below:
        raise UserError(f"{option} {path}: {_reason_without_files(skipped)}")
    _check_for_images(below, path, option, f"unpack {archive} and give the archive inside")
    return below


def _reason_without_files(skipped: list[SkippedMember]) -> str:
    if not skipped:
        return "the archive contains no files"
    name, reason = skipped[0]
    return (
        f"the archive contains no files that can be read; {counted(len(skipped), 'member')} "
        f"skipped, the first: {name}: {reason}; create the archive again with names relative to "
        "the folder of the data set"
    )


def _list_folder(path: Path) -> Files:
    """List a folder. Backslashes in names separate folders, as in an archive."""
    skipped: list[SkippedMember] = []
    found: dict[str, File | None] = dict.fromkeys(_walk(path, skipped))
    for name in [name for name in found if "\\" in name]:
        del found[name]
        relative = relative_name(name)
        if relative is None or relative in found:
            skipped.append(SkippedMember(name, "its backslashes do not separate folders"))
        else:
            with contextlib.suppress(OSError):  # deleted since
                found[relative] = LooseFile.of(path.absolute() / name)
    return Files(str(path), found, skipped)


def _archives(files: Iterable[str]) -> list[str]:
    return [name for name in files if name.lower().endswith(ARCHIVE_SUFFIXES)]


def _check_for_images(files: Iterable[str], path: Path, option: str, remedy: str) -> None:
    """Raise UserError if there are no images, but an archive that may have them."""
    archives = _archives(files)
    suffixes = (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES)
    if archives and not any(name.lower().endswith(suffixes) for name in files):
        raise UserError(
            f"{option} {path}: no images, but an archive inside: {archives[0]}; "
            f"{remedy} as {option}"
        )


def open_file(path: Path, option: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of one file, loose or in an archive. Raises UserError."""
    archive, inside = (None, "") if path.is_file() else split_archive_path(path)
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


def _describe_file(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return "the end of the zip is missing; download it again"
    return "not a directory, tar or zip"


def relative_name(name: str) -> str | None:
    """Return a POSIX name without ``.``, or None if it is absolute or contains ``..``."""
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        return None
    return "/".join(parts)


def split_archive_path(path: Path) -> tuple[Path | None, str]:
    """Return the archive that a path leads into, and the name inside; None if it is in none."""
    for parent in (path, *path.parents):
        if parent.is_file():
            inside = path.relative_to(parent).as_posix()
            return (parent, "" if inside == "." else inside) if is_archive(parent) else (None, "")
    return None, ""


def _walk(root: Path, skipped: list[SkippedMember]) -> Iterator[str]:
    """Yield the names of all files below a folder, in order.

    A folder that links lead to as well is listed once: at its own place if that is below the root.
    """

    def report(error: OSError) -> None:
        skipped.append(SkippedMember(str(error.filename), f"cannot be read: {error.strerror}"))

    root = root.absolute()
    names_by_folder: dict[str, list[str]] = {}
    seen = set()
    count = 0
    tops = [str(root)]
    for top in tops:  # grows: links come after all real folders
        for folder, folders, names in os.walk(top, onerror=report):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            paths = (os.path.join(folder, name) for name in folders)
            tops += [path for path in paths if os.path.islink(path)]
            names_by_folder[folder] = sorted(names)
            count += len(names)
            if count > MAX_FILES:
                raise UserError(f"{root}: more than {MAX_FILES} files; name the data set's folder")
    for folder in sorted(names_by_folder, key=lambda folder: folder.split(os.sep)):
        relative = Path(folder).relative_to(root)
        for name in names_by_folder.pop(folder):
            inside = (relative / name).as_posix()
            if not _is_macos_metadata(inside):
                yield inside


def _is_macos_metadata(name: str) -> bool:
    """Return whether macOS added this file to an archive or folder."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith("._")


def unreadable_format(name: str, file: File) -> str | None:
    """Return why an image of this suffix is not read, unless it is JPEG or PNG in fact."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in UNREADABLE_SUFFIXES:
        return None
    try:
        if image_format(file.read_start(_SIGNATURE_BYTES)):
            return None
    except (OSError, ValueError):
        pass
    return f"{suffix[1:].upper()} is a format that is not read; convert the image to JPEG or PNG"
