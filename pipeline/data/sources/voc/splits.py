"""Select the images of a split: by its list, or by its subfolder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import FileError, Files
from pipeline.data.sources.paths import image_stem, list_entries
from pipeline.data.sources.resolve import resolve
from pipeline.data.sources.voc.layout import is_split_folder
from pipeline.data.sources.voc.pairs import Pairs, Unused
from pipeline.errors import UserError
from pipeline.progress import counted

# Folders with lists, in lower case; those below have other text files, too.
LIST_FOLDERS = ("imagesets/main", "imagesets")
FOLDERS_WITH_SPLIT_LISTS = ("annotations", "")
MAX_LIST_BYTES = 2**30
# Lists of one class have a second column, those of Oxford Pets have four.
_COLUMN = re.compile(r"(.*\S)\s+-?\d+")


class Split(NamedTuple):
    """Image ids of a split in order, images without an XML file that belong to it, and problems."""

    ids: list[str]
    unused: list[Unused]
    problems: list[Problem]


def select_split(files: Files, pairs: Pairs, root: Path, split: str | None) -> Split:
    """Return the images of a split, or all annotated images if it is None. Raises UserError.

    Without lists and without folders that are named like splits, ``split`` is only a name.
    """
    everything = Split(sorted(pairs.xml), list(chain(*pairs.unused.values())), [])
    if split is None:
        return everything
    if lists := _find_lists(files):
        return _listed(files, lists, pairs, root, split)
    folders = _split_folders(pairs)
    if not folders:
        return everything
    wanted = {name for name in folders if _is_same_split(name, split)}
    if not wanted:
        raise UserError(f"--split {split}: no such folder in {root}; available: {_join(folders)}")
    ids = sorted(key for key in pairs.xml if key.partition("/")[0] in wanted)
    unused = [
        image
        for key, images in pairs.unused.items()
        if key.partition("/")[0] in wanted or key.partition("/")[0] not in folders
        for image in images
    ]
    problems = []
    if outside := sum(key.partition("/")[0] not in folders for key in pairs.xml):
        reason = f"{counted(outside, 'XML file')} outside the folders {_join(folders)}; left out"
        problems.append(Problem(file=files.name, kind="file unused", reason=reason))
    return Split(ids, unused, problems)


def split_names(files: Files, pairs: Pairs) -> list[str]:
    """Return the names of the splits of a data set: of its lists, else of its folders."""
    lists = [name for name in _find_lists(files) if is_split_folder(name)]
    return sorted(lists) or sorted(_split_folders(pairs))


def _split_folders(pairs: Pairs) -> set[str]:
    folders = {key.partition("/")[0] for key in pairs.xml if "/" in key}
    return {name for name in folders if is_split_folder(name)}


def _find_lists(files: Files) -> dict[str, str]:
    """Return the lists of the data set by the names of their splits."""
    texts = [name for name in files if name.lower().endswith(".txt") and name.count("/") < 3]
    for folder in (*LIST_FOLDERS, *FOLDERS_WITH_SPLIT_LISTS):
        found = {
            Path(name).stem: name
            for name in sorted(texts)
            if name.rpartition("/")[0].lower() == folder
            and (folder in LIST_FOLDERS or is_split_folder(Path(name).stem))
        }
        if found:
            return found
    return {}


def _listed(files: Files, lists: dict[str, str], pairs: Pairs, root: Path, split: str) -> Split:
    folder = lists[min(lists)].rpartition("/")[0]
    if split not in lists:
        raise UserError(
            f"--split {split}: not in {folder or 'the lists'} of {root}; available: {_join(lists)}"
        )
    known = {*pairs.xml, *pairs.unused}
    try:
        ids = _read_list(files, lists[split], known)
    except FileError as error:
        raise UserError(f"--split {split}: {lists[split]} {error}") from None
    unknown = {entry: _stem(entry) for entry in ids if entry not in known}
    result = resolve(unknown.values(), known, files.location, lists[split])
    ids = [result.found.get(unknown.get(entry, ""), entry) for entry in ids]
    # Other files that belong to an image of the split.
    unused = [image for key in ids if key in pairs.xml for image in pairs.unused.get(key, ())]
    problems = [*result.problems, *_unlisted(files, lists, known - set(ids))]
    return Split(ids, unused, problems)


def _unlisted(files: Files, lists: dict[str, str], images: set[str]) -> Iterator[Problem]:
    """Yield a note on the images that are in none of the lists of splits."""
    known = set(images)
    for name, path in lists.items():
        if is_split_folder(name):
            with contextlib.suppress(FileError):  # reported when that split is converted
                images = images.difference(_read_list(files, path, known))
    if images:
        folder = next(iter(lists.values())).rpartition("/")[0] or files.name
        reason = f"{counted(len(images), 'image')} in none of the lists of splits; left out"
        yield Problem(file=folder, kind="note", reason=reason)


def _read_list(files: Files, path: str, known: set[str]) -> list[str]:
    """Return the ids in a list, without suffixes and further columns. Raises FileError."""
    lines = list_entries(files.read_bytes(path, MAX_LIST_BYTES))
    return [_read_entry(line, known) for line in lines]


def _read_entry(line: str, known: set[str]) -> str:
    for text in _without_columns(line):
        for entry in (text, _stem(text)):
            if entry in known:
                return entry
    if match := _COLUMN.fullmatch(line):
        return match[1]
    first = line.split()[0]  # PaddleDetection lists the image and its XML file
    return first if image_stem(first) != first else line


def _stem(entry: str) -> str:
    """Return an entry without the suffix of an image or XML file."""
    return entry[:-4] if entry.lower().endswith(".xml") else image_stem(entry)


def _without_columns(line: str) -> Iterator[str]:
    """Yield a line without its last column, without the one before, ...; then the whole line."""
    text = line
    while match := _COLUMN.fullmatch(text):
        text = match[1]
        yield text
    yield line


def _is_same_split(folder: str, split: str) -> bool:
    folder, split = folder.lower(), split.lower()
    return folder == split or (folder[:3] == split[:3] == "val" and is_split_folder(split))


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
