"""Names of images in the other annotation files of a data set, which may share its images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.data.sources.archives import list_archive
from pipeline.data.sources.coco_file.file_names import find_file_names
from pipeline.data.sources.files import File, FileError, Files, LooseFile, split_archive_path
from pipeline.errors import UserError

MAX_BYTES = 2 * 2**30  # of all files; larger ones are not searched


def names_listed_elsewhere(annotations: Path, files: Files) -> set[str]:
    """Return the last parts of the file names in the other JSON files of a data set.

    These are all JSON files among ``files``, those in the folder of ``annotations`` and, if the
    images are in the same data set, those in the folders beside that one: ``train/a.json`` and
    ``val/a.json``. The files are searched as text, which takes a fraction of the time of parsing.
    """
    names: set[str] = set()
    left = MAX_BYTES
    own = _absolute(annotations)
    searched = {own}
    for path, file in _json_files(own, files):
        if path in searched:
            continue
        searched.add(path)
        left -= file.size
        if left < 0:
            break
        try:
            data = file.read(file.size)
        except (OSError, ValueError):  # an aid only: pictures that it does not find are reported
            continue
        names.update(name.replace("\\", "/").rpartition("/")[2] for name in find_file_names(data))
    return names


def _json_files(annotations: Path, files: Files) -> Iterator[tuple[Path, File]]:
    images, folder = _absolute(files.location), annotations.parent
    yield from _matching(folder, "*.json")
    common = Path(os.path.commonpath([images, annotations]))
    if common != Path(common.anchor) and folder.parent.is_relative_to(common):
        yield from _matching(folder.parent, "*/*.json")
    for name in files:
        if name.lower().endswith(".json"):
            try:
                yield images / name, files.file(name)
            except FileError:
                continue


def _matching(folder: Path, pattern: str) -> Iterator[tuple[Path, File]]:
    """Yield the files of a folder, on disk or in an archive, that fit a relative pattern."""
    try:
        if folder.is_dir():
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    yield path, LooseFile.of(path)
            return
        archive, inside = split_archive_path(folder)
        if archive is None:
            return
        depth = len(PurePosixPath(inside, pattern).parts)
        for name, member in list_archive(archive)[0].items():
            inner = PurePosixPath(name)
            fits = inner.is_relative_to(inside) and inner.suffix == ".json"
            if fits and len(inner.parts) == depth:
                yield archive / name, member
    except (OSError, UserError):
        return


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))
