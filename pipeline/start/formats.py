"""Find the format of a data set: what its files are, without converting any."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.sources.coco_file.file_names import find_file_names
from pipeline.data.sources.files import File, FileError, Files
from pipeline.data.sources.paths import IMAGE_SUFFIXES, image_stem
from pipeline.data.sources.voc.layout import find_layout
from pipeline.data.sources.voc.pairs import pair_files
from pipeline.data.sources.voc.splits import split_names
from pipeline.data.sources.yolo import label_path
from pipeline.data.sources.yolo.source import yolo_splits
from pipeline.errors import UserError
from pipeline.progress import counted
from pipeline.start.splits import by_split, use_of

KNOWN = "VOC XML, COCO JSON, YOLO text, WebDataset tars or shard sets"
MAX_JSON_BYTES = 4 * 2**30
MAX_PEEKED = 20  # files that are opened to recognise a format
_YOLO_LINE = re.compile(rb"\s*\d+(?:[ \t]+-?[\d.]+(?:e[-+]?\d+)?){4,}\s*(?:[\r\n]|$)", re.I)
_OTHER_COCO = re.compile("keypoints|captions|panoptic|stuff")


@dataclass(frozen=True)
class Format:
    """A format that a folder is in: its splits by use, each with its name in the source.

    ``images`` are the names, without folders and suffixes, of the images that have labels;
    ``notes`` are about files that are not used, and ``held`` has the file names of test images
    whose labels are nowhere. ``labelled`` are the images with a label file of their own by name.
    """

    kind: str
    splits: dict[str, str]
    images: frozenset[str] = field(default=frozenset(), repr=False)
    notes: list[str] = field(default_factory=list)
    held: frozenset[str] = field(default=frozenset(), repr=False)
    labelled: Mapping[str, File] = field(default_factory=dict, repr=False)


def find_formats(files: Files, root: Path, classes: list[str] | None) -> list[Format]:
    """Return every format whose labels are in the files. Raises UserError if one is ambiguous."""
    found = []
    for find in _FINDERS:
        if (one := find(files, root, classes)) is not None:
            found.append(one)
    return found


def _find_voc(files: Files, root: Path, classes: Sequence[str] | None) -> Format | None:
    xml = [name for name in files if name.lower().endswith(".xml")]
    if not any(b"<annotation" in _start(files, name) for name in xml[:MAX_PEEKED]):
        return None
    layout = find_layout(files, root)
    pairs = pair_files(layout)
    images = frozenset(_stem(name) for name in pairs.images.values())
    splits = by_split(split_names(layout.files, pairs), root)
    labelled = _files(layout.files, (pairs.images[key] for key in pairs.xml if key in pairs.images))
    return Format("voc", splits, images, labelled=labelled)


def _find_coco(files: Files, root: Path, classes: Sequence[str] | None) -> Format | None:
    texts: dict[str, bytes] = {}
    notes, held = [], set[str]()
    for name in (name for name in files if name.lower().endswith(".json")):
        with contextlib.suppress(FileError):
            text = files.read_bytes(name, MAX_JSON_BYTES)
            if all(key in text for key in (b'"images"', b'"annotations"', b'"categories"')):
                texts[name] = text
            elif b'"images"' in text and b'"annotations"' not in text:
                if listed := find_file_names(text):
                    notes.append(f"{name} has no annotations and is left out")
                if use_of(name) == "test":
                    held.update(listed)
    if not texts:
        return None
    for name in _beside_instances(texts):
        notes.append(f"{name} is not used: an instances file has the boxes of its images")
        del texts[name]
    names = frozenset(_stem(name) for text in texts.values() for name in find_file_names(text))
    return Format("coco", by_split(list(texts), root), names, notes, frozenset(held))


def _beside_instances(names: Iterable[str]) -> list[str]:
    """Return the files of key points and similar beside an instances file of the same split."""
    stems = {name: PurePosixPath(name).stem.lower() for name in names}
    splits = {use_of(name) for name, stem in stems.items() if "instances" in stem}
    return [
        name
        for name, stem in stems.items()
        if "instances" not in stem and _OTHER_COCO.search(stem) and use_of(name) in splits
    ]


def _find_yolo(files: Files, root: Path, classes: list[str] | None) -> Format | None:
    texts = {_stem(name): name for name in files if name.lower().endswith(".txt")}
    images = {_stem(name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)}
    labelled = sorted(texts.keys() & images)
    if not any(_YOLO_LINE.match(_start(files, texts[stem])) for stem in labelled[:MAX_PEEKED]):
        return None
    splits = by_split(yolo_splits(root, classes), root)
    pairs = (
        name
        for name in files
        if name.lower().endswith(IMAGE_SUFFIXES) and label_path(name) in files
    )
    return Format("yolo", splits, frozenset(labelled), labelled=_files(files, pairs))


def _files(files: Files, names: Iterable[str]) -> dict[str, File]:
    found = {}
    for name in names:
        with contextlib.suppress(FileError):
            found[name] = files.file(name)
    return found


Finder = Callable[[Files, Path, "list[str] | None"], "Format | None"]
_FINDERS: Sequence[Finder] = (_find_voc, _find_coco, _find_yolo)


def find_tars(folder: Path) -> Format | None:
    """Return the format of WebDataset tars in a folder, None if there are none or others."""
    tars = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    groups: dict[str, list[str]] = defaultdict(list)
    for path in tars:
        name = path.relative_to(folder).as_posix()
        groups[re.sub(r"\d+", "[0-9]*", name)].append(name)
    if not tars:
        return None
    if not _has_samples(tars[0]):
        return None
    return Format("webdataset", by_split(list(groups), folder))


def find_tar(path: Path) -> Format | None:
    """Return the format of one WebDataset tar, None if it is a folder or another archive."""
    if not path.is_file() or not _has_samples(path):
        return None
    return Format("webdataset", {use_of(path.name): ""})


def _has_samples(tar: Path) -> bool:
    """Return whether a file is a tar with an image and its labels under one key."""
    from pipeline.data.sources.webdataset.listing import list_shard  # slow to import

    with contextlib.suppress(UserError):  # not a tar
        samples = list_shard(str(tar), tar.name).samples[:MAX_PEEKED]
        return any(sample.images() and len(sample.members) > 1 for sample in samples)
    return False


def _start(files: Files, name: str) -> bytes:
    with contextlib.suppress(FileError, OSError, ValueError):
        return files.file(name).read_start(1024)
    return b""


def _stem(name: str) -> str:
    return PurePosixPath(image_stem(name)).name.removesuffix(".txt")


def describe_absence(files: Files, path: Path) -> str:
    """Return why no format was found, as one line."""
    pictures = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in files)
    if not len(files):
        return f"{path} is empty; give the folder of labelled images"
    if not pictures:
        return f"{path} has no images; give a folder with labelled images: {KNOWN}"
    if other := other_labels(files):
        return f"{path}: {other}"
    return f"{path} has {counted(pictures, 'image')}, but no labels ({KNOWN})"


def other_labels(files: Files) -> str | None:
    """Return what the labels are if they are of a format that is not read, or empty."""
    images = {_stem(name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)}
    texts = [n for n in files if n.lower().endswith(".txt") and _stem(n) in images]
    if texts and not any(_start(files, name).strip() for name in texts):
        return f"{counted(len(texts), 'label file')}, all empty; label the objects"
    for name in [n for n in files if n.lower().endswith(".json")][:MAX_PEEKED]:
        start = _start(files, name)
        if b'"shapes"' in start and (b'"flags"' in start or b'"imagePath"' in start):
            return (
                f"labels of LabelMe, such as {name}, are not read; convert them to one of {KNOWN}"
            )
    if tables := [name for name in files if name.lower().endswith(".csv")]:
        return f"labels in CSV, such as {tables[0]}, are not read; convert them to one of {KNOWN}"
    return None
