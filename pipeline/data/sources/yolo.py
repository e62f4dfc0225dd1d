"""YOLO data sets: a YAML of class names and splits, and one text file of labels beside each image.

A line is ``class cx cy w h`` in fractions of the picture as its EXIF orientation turns it, or
``class x1 y1 x2 y2 ...``, a polygon, of which the bounding box is kept. An image without a label
file has no objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipeline.data.shards.manifest import Problem
from pipeline.data.sources.files import File, FileError, Files, open_files, plain_name, read_file
from pipeline.data.sources.record import Item, Object, Record, Source, given_up, label_weight
from pipeline.data.sources.voc import SUFFIXES
from pipeline.errors import UserError

LARGEST_LABELS = 16 * 2**20
LARGEST_YAML = 2**20
# Beyond rounding, a coordinate over 1 is in pixels, by mistake.
MOST = 1.01
OTHER_NAMES = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


def yolo_source(root: Path, split: str | None, classes: list[str] | None = None) -> Source:
    """The images of one split, or of all if ``split`` is None.

    ``root`` is a folder, a tar or a zip, or a folder inside one, with a YAML that has ``names``;
    without one, ``classes`` gives the names, and a split is a folder of that name.
    """
    only = root.name if root.is_file() and root.suffix.lower() in (".yaml", ".yml") else None
    root = root.parent if only else root
    files = open_files(root, "--root")
    name, tree = _yaml(files, root, only)
    below = files.below(str(PurePosixPath(name).parent)) if name else files
    if any(image.lower().endswith(SUFFIXES) for image in below):
        files = below
    names = _names(tree, name) if tree else dict(enumerate(classes or []))
    if not names:
        raise UserError(
            f"--root {root}: no YAML with names there; give the class names, in the order of their "
            "numbers, with --classes"
        )
    images = _images(files, tree, split, root)
    if not images:
        raise UserError(f"--root {root}: no images found" + (f" of split {split}" if split else ""))
    kpts = tree.get("kpt_shape") is not None
    if not any(isinstance(i, str) and label_name(i) in files for i in images):
        raise UserError(
            f"--root {root}: none of {len(images)} images has its label file; the first would be "
            f"{label_name(images[0])}"
        )
    return Source(
        kind="yolo",
        name=files.name,
        classes=list(dict.fromkeys(names[number] for number in sorted(names))),
        records=_items(files, images, names, kpts),
        total=len(images),
        problems=files.problems(),
    )


def label_name(image: str) -> str:
    """Where an image's labels are: in ``labels`` for its last folder ``images``, else beside it."""
    path = PurePosixPath(image)
    parts = list(path.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return PurePosixPath(*parts).with_suffix(".txt").as_posix()


def _yaml(files: Files, root: Path, only: str | None) -> tuple[str, dict[str, Any]]:
    """The YAML with class names that lies least deep, and its content; empty if there is none."""
    found = []
    for name in files:
        if not name.lower().endswith((".yaml", ".yml")) or (only and name != only):
            continue
        try:
            tree = yaml.safe_load(files.text(name, LARGEST_YAML))
        except (FileError, yaml.YAMLError, ValueError, RecursionError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"--root {root}: {name} cannot be read: {line}") from None
        if isinstance(tree, dict) and "names" in tree:
            found.append((name.count("/"), name, tree))
    found.sort(key=lambda row: row[:2])
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise UserError(
            f"--root {root}: several data sets: {found[0][1]} and {found[1][1]}; "
            "name the one that is meant, or its folder"
        )
    return (found[0][1], found[0][2]) if found else ("", {})


def _names(tree: dict[str, Any], file: str) -> dict[int, str]:
    names = tree["names"]
    try:
        if isinstance(names, list):
            names = dict(enumerate(names))
        known = {int(number): str(name).strip() for number, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{file}: names is neither a list nor numbers with names") from None
    if not known or "" in known.values() or min(known) < 0:
        raise UserError(f"{file}: names has an empty name or a negative number, or is empty")
    if isinstance(tree.get("nc"), int) and tree["nc"] != len(known):
        raise UserError(f"{file}: nc is {tree['nc']}, but names has {len(known)}; correct one")
    return known


def _images(files: Files, tree: dict[str, Any], split: str | None, root: Path) -> list[str]:
    """Names of the images, as far as they can be found; in order, each once."""
    every = [name for name in files if name.lower().endswith(SUFFIXES)]
    given = {key: tree[key] for key in ("train", "val", "test") if tree.get(key)}
    if split is None:
        if not given:
            return every
        rows = [name for key in given for name in _listed(files, every, tree, given[key])]
        return list(dict.fromkeys(rows))
    if given:
        if split not in given:
            raise UserError(
                f"--split {split}: not in the YAML of {root}; there are: {', '.join(given)}"
            )
        return list(dict.fromkeys(_listed(files, every, tree, given[split])))
    wanted = OTHER_NAMES.get(split, (split,))
    found = [n for n in every if set(wanted) & set(PurePosixPath(n).parts[:-1])]
    if not found:
        raise UserError(f"--split {split}: {root} has no YAML and no folder {' or '.join(wanted)}")
    return found


def _listed(files: Files, every: Sequence[str], tree: dict[str, Any], entry: Any) -> list[str]:
    """The images that a split's entry means: folders, text files with names, or lists of these."""
    if isinstance(entry, list):
        return [name for one in entry for name in _listed(files, every, tree, one)]
    text = str(entry)
    for place in _places(text, str(tree.get("path") or "")):
        start = "" if place == "" else f"{place}/"
        inside = [name for name in every if name.startswith(start)]
        if place in files and place.lower().endswith(".txt"):
            lines = files.text(place, 2**30).decode("utf-8", errors="replace").splitlines()
            folder = PurePosixPath(place).parent.as_posix()
            return [_found(files, line.strip(), folder) for line in lines if line.strip()]
        if inside:
            return inside
    return []


def _places(text: str, path: str) -> Iterator[str]:
    """Where an entry may be meant to lie, seen from the YAML: exporters disagree about that."""
    inside = re.sub(r"^(\.\.?/)+", "", text)
    for base in (path, path.rstrip("/").rpartition("/")[2], ""):
        plain = plain_name(f"{base}/{text}" if base else text)
        if plain is not None or text in (".", "./"):
            yield plain or ""
    if plain := plain_name(inside):
        yield plain


def _found(files: Files, line: str, folder: str) -> str:
    """The listed name, seen from the list's own folder or the data set's; as it is if not found."""
    for base in ("", folder):
        plain = plain_name(f"{base}/{line}" if base not in ("", ".") else line)
        if plain is not None and plain in files:
            return plain
    return line


@dataclass(frozen=True)
class YoloItem:
    """An image whose labels are read when it is converted."""

    image_id: str
    file_name: str
    image: File
    labels_name: str
    labels: File | None
    names: tuple[tuple[int, str], ...]
    keypoints: bool

    @property
    def weight(self) -> int:
        """Bytes of the image and about those of its JSON: some 40 of text tell of an object."""
        return self.image.size + label_weight(self.labels.size // 40 if self.labels else 0)

    def record(self) -> Record:
        """Read the labels."""
        file, problems, objects = self.labels_name, [], []
        if self.labels is None:
            reason = f"no label file {file}; taken as an image without objects"
            problems.append(Problem(file=self.file_name, kind="repaired", reason=reason))
        else:
            try:
                text = read_file(self.labels, LARGEST_LABELS).decode("utf-8-sig")
            except (FileError, UnicodeDecodeError) as error:
                reason = f"{file} cannot be read: {error}"
                problem = Problem(file=self.file_name, kind="image skipped", reason=reason)
                return Record(self.image_id, self.file_name, None, file, problems=[problem])
            objects = self._objects(text, problems)
        return Record(
            self.image_id,
            self.file_name,
            self.image,
            file,
            None,
            objects,
            problems,
            relative=True,
            upright=True,
        )

    def _objects(self, text: str, problems: list[Problem]) -> list[Object]:
        names, objects, seen = dict(self.names), [], set()
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            try:
                if tuple(fields) in seen:
                    raise ValueError("repeats an earlier line")
                seen.add(tuple(fields))
                objects.append(_object(fields, names, self.keypoints))
            except ValueError as error:
                reason = f"line {number}: {error}"
                problems.append(Problem(file=self.labels_name, kind="box dropped", reason=reason))
        return objects


def _object(fields: list[str], names: dict[int, str], keypoints: bool) -> Object:
    values = []
    for field in fields:
        try:
            values.append(float(field))
        except ValueError:
            raise ValueError(f"{field[:40]!r} is no number") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    number, *place = values
    if number != int(number) or int(number) not in names:
        raise ValueError(f"unknown class {fields[0]}; known: {min(names)} to {max(names)}")
    polygon = len(place) >= 6 and len(place) % 2 == 0 and not keypoints
    if len(place) < 4 or (len(place) > 4 and not polygon and not keypoints):
        raise ValueError(f"{len(fields)} values; expected class, cx, cy, w, h or a polygon")
    if max(abs(value) for value in (place if polygon else place[:4])) > MOST:
        raise ValueError("a coordinate is over 1; they are fractions of the picture's size")
    if polygon:
        box = min(place[::2]), min(place[1::2]), max(place[::2]), max(place[1::2])
    else:
        cx, cy, width, height = place[:4]
        box = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    return Object(names[int(number)], box)


def _items(
    files: Files, images: list[str], names: dict[int, str], keypoints: bool
) -> Iterator[Item]:
    table = tuple(sorted(names.items()))
    for image in images:
        labels = label_name(image)
        try:
            file = files.file(image)
            text = files.file(labels) if labels in files else None
        except FileError as error:
            yield given_up(image, image, f"{error} in {files.place}")
            continue
        stem = PurePosixPath(image).with_suffix("").as_posix()
        yield YoloItem(stem, image, file, labels, text, table, keypoints)
