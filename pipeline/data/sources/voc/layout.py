"""Find the folders of XML files and of images in a data set, wherever and however named."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from os.path import commonpath
from pathlib import Path
from typing import NamedTuple

from pipeline.data.sources.files import Files
from pipeline.data.sources.paths import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from pipeline.errors import UserError

# In lower case, in the order of preference.
XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels", "label")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pictures", "photos")
MAX_LISTED_DATA_SETS = 5
_SPLIT_FOLDER = re.compile(r"(train|val|test)(ing|id|idation|val)?([-_]?\d+)?$", re.I)


class Part(NamedTuple):
    """A folder of XML files and its folder of images; their ids begin with ``prefix``."""

    xml_folder: str
    image_folder: str
    prefix: str = ""


class Layout(NamedTuple):
    """The files of one data set, and its parts."""

    files: Files
    parts: list[Part]


def find_layout(files: Files, root: Path) -> Layout:
    """Return the one data set in a source, at any depth. Raises UserError.

    Folders are found by their names. If there are none, XML and images are in one folder, or in the
    only two folders that have any.
    """
    xml = _folders_with(files, (".xml",))
    images = _folders_with(files, (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES))
    xml_parents, image_parents = _parents(xml, XML_FOLDERS), _parents(images, IMAGE_FOLDERS)
    for xml_name in XML_FOLDERS:
        for image_name in IMAGE_FOLDERS:
            found = sorted(xml_parents[xml_name].keys() & image_parents[image_name].keys())
            if found:
                pairs = {p: (xml_parents[xml_name][p], image_parents[image_name][p]) for p in found}
                return _layout(files, pairs, root)
    if both := sorted(xml & images):
        return _layout(files, {folder: (folder, folder) for folder in both}, root)
    if len(xml) == len(images) == 1:
        return _layout(files, {"": (xml.pop(), images.pop())}, root)
    raise UserError(
        f"--root {root}: not a VOC data set: no folder Annotations with XML files beside a folder "
        f"JPEGImages; {_describe(xml, 'XML files')}, {_describe(images, 'images')}"
    )


def is_split_folder(name: str) -> bool:
    """Return whether a folder is named like a split: train, val, valid, test2017."""
    return bool(_SPLIT_FOLDER.match(name))


def _folders_with(files: Iterable[str], suffixes: tuple[str, ...]) -> set[str]:
    return {name.rpartition("/")[0] for name in files if name.lower().endswith(suffixes)}


def _parents(folders: Iterable[str], names: Collection[str]) -> Mapping[str, dict[str, str]]:
    """Return, for each name, the folders that have a subfolder of that name, and its path."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for folder in sorted(folders):
        parts = folder.split("/")
        for at, part in enumerate(parts):
            if part.lower() in names:
                found[part.lower()].setdefault("/".join(parts[:at]), "/".join(parts[: at + 1]))
    return found


def _layout(files: Files, pairs: Mapping[str, tuple[str, str]], root: Path) -> Layout:
    """Return the layout of folders by the parent they have in common.

    Several parents are one data set if one contains all, or if they are named like splits.
    """
    parents = [
        parent
        for parent, (folder, _) in pairs.items()
        if folder != parent or not any(parent.startswith(f"{other}/") for other in pairs)
    ]
    base = parents[0] if len(parents) == 1 else commonpath(parents)
    if base in pairs:
        prefixes = [base]
    else:
        prefixes = parents
        names = [parent[len(base) :].strip("/").split("/")[0] for parent in parents]
        if not all(is_split_folder(name) for name in names) or len(set(names)) < len(names):
            some = ", ".join(str(root / parent) for parent in parents[:MAX_LISTED_DATA_SETS])
            raise UserError(f"--root {root}: found {len(parents)} data sets; name one: {some}")
    start = len(base) + 1 if base else 0
    parts = []
    for prefix in prefixes:
        xml_folder, image_folder = pairs[prefix]
        parts.append(Part(xml_folder[start:], image_folder[start:], prefix[start:]))
    return Layout(files.subfolder(base), parts)


def _describe(folders: Collection[str], what: str) -> str:
    if not folders:
        return f"found no {what}"
    shown = ", ".join(sorted(folder or "." for folder in folders)[:MAX_LISTED_DATA_SETS])
    return f"found {what} in {shown}"
