"""Read YOLO data sets: a YAML with class names and splits, and one text file of labels per image.

A line is ``class cx cy w h`` in fractions of the image as its EXIF orientation turns it, or
``class x1 y1 x2 y2 ...``, a polygon, which is replaced by its bounding box. An image without a
label file has no objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import (
    MAX_LABEL_BYTES,
    File,
    FileError,
    Files,
    open_files,
    read_file,
    relative_name,
)
from pipeline.data.sources.record import (
    Images,
    Object,
    Record,
    Source,
    SourceImage,
    estimate_label_bytes,
    skipped_image,
)
from pipeline.data.sources.voc import IMAGE_SUFFIXES
from pipeline.errors import UserError
from pipeline.safe_yaml import YamlError, load_yaml

MAX_YAML_BYTES = 2**20
# A coordinate further above 1 than rounding explains is in pixels, by mistake.
MAX_COORDINATE = 1.01
SPLIT_FOLDERS = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


def yolo_source(root: Path, split: str | None, classes: list[str] | None = None) -> Source:
    """Return the images of one split, or of all splits if ``split`` is None.

    ``root`` is a folder, a tar or a zip, or a folder inside one, with a YAML that has ``names``, or
    that YAML itself. Without a YAML, ``classes`` gives the names, and a split is a folder of that
    name. Raises UserError.
    """
    only = root.name if root.is_file() and root.suffix.lower() in (".yaml", ".yml") else None
    root = root.parent if only else root
    files = open_files(root, "--root")
    name, tree = _find_yaml(files, root, only)
    below = files.subfolder(str(PurePosixPath(name).parent)) if name else files
    if any(image.lower().endswith(IMAGE_SUFFIXES) for image in below):
        files = below
    names = _names(tree, name) if tree else dict(enumerate(classes or []))
    if not names:
        raise UserError(
            f"--root {root}: no YAML with names found; give the class names, in the order of their "
            "numbers, with --classes"
        )
    images = _images(files, tree, split, root)
    if not images:
        raise UserError(f"--root {root}: no images found" + (f" of split {split}" if split else ""))
    keypoints = tree.get("kpt_shape") is not None
    if not any(isinstance(i, str) and label_path(i) in files for i in images):
        raise UserError(
            f"--root {root}: none of {len(images)} images has a label file; the first one expected "
            f"is {label_path(images[0])}"
        )
    return Source(
        kind="yolo",
        name=files.name,
        classes=list(dict.fromkeys(names[number] for number in sorted(names))),
        images=Images(lambda: _source_images(files, images, names, keypoints)),
        total=len(images),
        problems=files.problems(),
        boxes_are="upright",
    )


def label_path(image: str) -> str:
    """Return the path of an image's label file.

    ``labels`` replaces the last folder called ``images``; without one it is beside the image.
    """
    path = PurePosixPath(image)
    parts = list(path.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return PurePosixPath(*parts).with_suffix(".txt").as_posix()


def _find_yaml(files: Files, root: Path, only: str | None) -> tuple[str, dict[str, Any]]:
    """Return the least deeply nested YAML with class names, and its content; empty if none."""
    found = []
    for name in files:
        if not name.lower().endswith((".yaml", ".yml")) or (only and name != only):
            continue
        try:
            tree = load_yaml(files.read_bytes(name, MAX_YAML_BYTES))
        except (FileError, YamlError) as error:
            raise UserError(f"--root {root}: {name} cannot be read: {error}") from None
        if isinstance(tree, dict) and "names" in tree:
            found.append((name.count("/"), name, tree))
    found.sort(key=lambda row: row[:2])
    if len(found) > 1 and found[0][0] == found[1][0]:
        raise UserError(
            f"--root {root}: several data sets: {found[0][1]} and {found[1][1]}; "
            "give one of them, or its folder, as --root"
        )
    return (found[0][1], found[0][2]) if found else ("", {})


def _names(tree: dict[str, Any], file: str) -> dict[int, str]:
    names = tree["names"]
    try:
        if isinstance(names, list):
            names = dict(enumerate(names))
        known = {int(number): str(name).strip() for number, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{file}: names must be a list, or a mapping of numbers to names") from None
    if not known or "" in known.values() or min(known) < 0:
        raise UserError(f"{file}: names has an empty name or a negative number, or is empty")
    if isinstance(tree.get("nc"), int) and tree["nc"] != len(known):
        raise UserError(f"{file}: nc is {tree['nc']}, but names has {len(known)}; correct one")
    return known


def _images(files: Files, tree: dict[str, Any], split: str | None, root: Path) -> list[str]:
    """Return the names of the images in order, each once; listed images may not exist."""
    all_images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    given = {key: tree[key] for key in ("train", "val", "test") if tree.get(key)}
    if split is None:
        if not given:
            return all_images
        rows = [
            name for key in given for name in _images_of_entry(files, all_images, tree, given[key])
        ]
        return list(dict.fromkeys(rows))
    if given:
        if split not in given:
            raise UserError(
                f"--split {split}: not in the YAML of {root}; available: {', '.join(given)}"
            )
        return list(dict.fromkeys(_images_of_entry(files, all_images, tree, given[split])))
    wanted = SPLIT_FOLDERS.get(split, (split,))
    found = [n for n in all_images if set(wanted) & set(PurePosixPath(n).parts[:-1])]
    if not found:
        folders = " or ".join(wanted)
        raise UserError(f"--split {split}: no YAML with splits and no folder {folders} in {root}")
    return found


def _images_of_entry(
    files: Files, all_images: Sequence[str], tree: dict[str, Any], entry: Any
) -> list[str]:
    """Return the images of a split's entry: a folder, a text file of names, or a list of these."""
    if isinstance(entry, list):
        return [name for one in entry for name in _images_of_entry(files, all_images, tree, one)]
    text = str(entry)
    for location in _candidate_locations(text, str(tree.get("path") or "")):
        start = "" if location == "" else f"{location}/"
        inside = [name for name in all_images if name.startswith(start)]
        if location in files and location.lower().endswith(".txt"):
            lines = files.read_bytes(location, 2**30).decode("utf-8", errors="replace").splitlines()
            folder = PurePosixPath(location).parent.as_posix()
            return [_resolve_line(files, line.strip(), folder) for line in lines if line.strip()]
        if inside:
            return inside
    return []


def _candidate_locations(text: str, path: str) -> Iterator[str]:
    """Yield where an entry may be, relative to the YAML; exporters disagree."""
    inside = re.sub(r"^(\.\.?/)+", "", text)
    for base in (path, path.rstrip("/").rpartition("/")[2], ""):
        relative = relative_name(f"{base}/{text}" if base else text)
        if relative is not None or text in (".", "./"):
            yield relative or ""
    if relative := relative_name(inside):
        yield relative


def _resolve_line(files: Files, line: str, folder: str) -> str:
    """Return a listed name relative to the data set; unchanged if there is no such file.

    Names in a list are relative to the data set or to the list's own folder.
    """
    for base in ("", folder):
        relative = relative_name(f"{base}/{line}" if base not in ("", ".") else line)
        if relative is not None and relative in files:
            return relative
    return line


@dataclass(frozen=True)
class YoloImage:
    """An image whose label file is read when it is converted."""

    image_id: str
    file_name: str
    image: File
    labels_name: str
    labels: File | None
    names: tuple[tuple[int, str], ...]
    keypoints: bool

    @property
    def estimated_bytes(self) -> int:
        """Return the bytes of the image and about those of its JSON.

        An object takes about 40 bytes of text.
        """
        return self.image.size + estimate_label_bytes(self.labels.size // 40 if self.labels else 0)

    def read_record(self) -> Record:
        """Read the labels."""
        file, problems, objects = self.labels_name, [], []
        if self.labels is None:
            reason = f"label file {file} not found; treated as an image without objects"
            problems.append(Problem(file=self.file_name, kind="repaired", reason=reason))
        else:
            try:
                text = read_file(self.labels, MAX_LABEL_BYTES).decode("utf-8-sig")
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
            layout="cxcywh",
        )

    def _objects(self, text: str, problems: list[Problem]) -> list[Object]:
        names, objects = dict(self.names), []
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            try:
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
            raise ValueError(f"{field[:40]!r} is not a number") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    number, *coordinates = values
    if number != int(number) or int(number) not in names:
        raise ValueError(f"unknown class {fields[0]}; known: {min(names)} to {max(names)}")
    polygon = len(coordinates) >= 6 and len(coordinates) % 2 == 0 and not keypoints
    if len(coordinates) < 4 or (len(coordinates) > 4 and not polygon and not keypoints):
        raise ValueError(f"{len(fields)} values; expected class, cx, cy, w, h or a polygon")
    if max(abs(value) for value in (coordinates if polygon else coordinates[:4])) > MAX_COORDINATE:
        raise ValueError("a coordinate is over 1; coordinates are fractions of the image size")
    if polygon:
        xs, ys = coordinates[::2], coordinates[1::2]
        box = min(xs), min(ys), max(xs), max(ys)
    else:
        cx, cy, width, height = coordinates[:4]
        box = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    return Object(names[int(number)], box)


def _source_images(
    files: Files, images: list[str], names: dict[int, str], keypoints: bool
) -> Iterator[SourceImage]:
    table = tuple(sorted(names.items()))
    for image in images:
        labels = label_path(image)
        try:
            file = files.file(image)
            text = files.file(labels) if labels in files else None
        except FileError as error:
            yield skipped_image(image, image, f"{error} in {files.location}")
            continue
        stem = PurePosixPath(image).with_suffix("").as_posix()
        yield YoloImage(stem, image, file, labels, text, table, keypoints)
