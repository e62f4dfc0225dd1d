"""List the images to predict on: of a folder, an archive, a text list, or one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.data.sources.archives import is_archive
from pipeline.data.sources.files import File, FileError, Files, LooseFile, open_files
from pipeline.data.sources.paths import (
    IMAGE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    list_entries,
    path_parts,
)
from pipeline.errors import UserError

LIST_SUFFIXES = (".txt", ".lst", ".list")
MAX_LIST_BYTES = 2**30
_SUFFIXES = (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES)
# How files of common formats begin: images may have any suffix, or none.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_SIGNATURE_BYTES = 12


class InputImage(NamedTuple):
    """A file that is an image by its name or its first bytes; ``error`` if it has no file."""

    name: str
    file: File | None
    error: str = ""


class InputFiles(NamedTuple):
    """The images in order, and the number of files that are not images."""

    images: list[InputImage]
    others: int


def list_images(source: Path, out: Path) -> InputFiles:
    """List the images of a folder or archive, of a list of paths, one a line, or of one file.

    Links are followed once. Files in ``out`` are left out. Paths in a list are relative to its
    folder or to the working directory. Raises UserError.
    """
    if not source.exists() and not any(parent.is_file() for parent in source.parents):
        raise UserError(f"--images {source}: no such file or directory")
    if source.is_file() and not is_archive(source):
        if _is_image(source.name, LooseFile.of(source)):
            return InputFiles([InputImage(source.name, LooseFile.of(source.absolute()))], 0)
        if not source.name.lower().endswith(LIST_SUFFIXES):
            raise UserError(
                f"--images {source}: not an image, a directory, an archive or a list (.txt)"
            )
        return _of_list(source)
    return _of_files(open_files(source, "--images"), source, out)


def _of_files(files: Files, source: Path, out: Path) -> InputFiles:
    excluded = out.resolve()
    names = [
        name
        for name in files
        if not source.is_dir() or excluded not in (source / name).resolve().parents
    ]
    if not names:
        raise UserError(f"--images {source} is empty")
    found = []
    for name in sorted(names, key=lambda name: name.split("/")):
        try:
            file = files.file(name)
        except FileError as error:  # a link to nothing
            if name.lower().endswith(_SUFFIXES):
                found.append(InputImage(name, None, str(error)))
            continue
        if _is_image(name, file):
            found.append(InputImage(name, file))
    return InputFiles(found, len(names) - len(found))


def _of_list(source: Path) -> InputFiles:
    try:
        entries = list_entries(LooseFile.of(source.absolute()).read(MAX_LIST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"--images {source}: {error}") from None
    if not entries:
        raise UserError(f"--images {source} is empty")
    return InputFiles([_listed(entry, source) for entry in dict.fromkeys(entries)], 0)


def _listed(entry: str, source: Path) -> InputImage:
    try:
        for path in (source.absolute().parent / entry, Path(entry).absolute()):
            if path.is_file():
                return InputImage(entry, LooseFile.of(path))
    except (OSError, ValueError) as error:  # too long, or with a null character
        return InputImage(entry, None, str(error))
    return InputImage(entry, None, f"not found in {source.parent} or the working directory")


def _is_image(name: str, file: File) -> bool:
    if name.lower().endswith(_SUFFIXES):
        return True
    try:
        start = file.read_start(_SIGNATURE_BYTES)
    except (OSError, ValueError):
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


@dataclass
class PictureNames:
    """Names of pictures below a folder, each given once, also where case does not count."""

    _files: set[str] = field(default_factory=set)
    _folders: set[str] = field(default_factory=set)

    def new(self, image: str) -> str:
        """Return the name of a picture: that of its image, with a suffix that can be written."""
        parts = path_parts(image) or ["image"]
        name = "/".join(parts)
        if PurePosixPath(name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
            name += ".jpg"
        path = PurePosixPath(name)
        if not self._files.isdisjoint(_parents(name)):
            path = PurePosixPath("_".join(path.parts))
        name, number = path.as_posix(), 1
        while name.casefold() in self._files or name.casefold() in self._folders:
            number += 1
            name = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
        self._files.add(name.casefold())
        self._folders.update(_parents(name))
        return name


def _parents(name: str) -> Iterator[str]:
    for parent in PurePosixPath(name.casefold()).parents:
        yield parent.as_posix()
