"""Read COCO instance annotations: one JSON file with images, annotations and categories.

Boxes are x, y, width, height, 0-based. Category ids may have gaps; labels number the categories in
the order of their ids. Segmentations (polygons or RLE) are dropped while the file is parsed, to
save memory.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import FileError, Files, open_file, open_files, relative_name
from pipeline.data.sources.record import (
    Images,
    Object,
    ParsedImage,
    Record,
    Source,
    SourceImage,
    skipped_image,
)
from pipeline.errors import UserError

MAX_LISTED_FOLDERS = 5


def coco_source(images: Path, annotations: Path) -> Source:
    """Return all images of an annotation file, whose file names are relative to ``images``.

    Both may be in a tar or zip: ``train2017.zip`` and ``annotations.zip/annotations/x.json``.
    Raises UserError.
    """
    tree = _read(annotations)
    files = _locate_images(open_files(images, "--images"), tree["images"], images)
    problems = files.problems()
    classes, names, ids = _categories(tree, annotations, problems)
    objects = _objects_by_image(tree, names, annotations.name, problems)
    return Source(
        kind="coco",
        name=annotations.stem,
        classes=classes,
        images=Images(lambda: _source_images(tree["images"], files, objects, annotations.name)),
        total=len(tree["images"]),
        problems=problems,
        category_ids=ids,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(open_file(path, "--annotations"), object_hook=_drop_segmentation)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"--annotations {path}: not valid JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        rows = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"--annotations {path}: not a COCO instances file: no list of {key}")
    return tree


def _drop_segmentation(row: dict[str, Any]) -> dict[str, Any]:
    row.pop("segmentation", None)
    return row


def _categories(
    tree: dict[str, Any], path: Path, problems: list[Problem]
) -> tuple[list[str], dict[int, str], list[int]]:
    """Return class names in the order of their ids, the name of each id, the id of each class."""
    try:
        names = {int(row["id"]): str(row["name"]) for row in tree["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"--annotations {path}: a category lacks its id or name") from None
    first: dict[str, int] = {}
    for number in sorted(names):
        if names[number] in first:
            reason = f"category {number} has the same name as {first[names[number]]}; merged"
            problems.append(Problem(file=path.name, kind="repaired", reason=reason))
        first.setdefault(names[number], number)
    return list(first), names, list(first.values())


def _objects_by_image(
    tree: dict[str, Any], names: dict[int, str], file: str, problems: list[Problem]
) -> dict[Any, list[Object]]:
    known = {row["id"] for row in tree["images"] if _has_id(row)}
    objects: dict[Any, list[Object]] = defaultdict(list)
    for row in tree["annotations"]:
        try:
            if row["image_id"] not in known:
                raise ValueError(f"image {row['image_id']} is not listed")
            objects[row["image_id"]].append(_object(row, names))
        except KeyError as error:
            problems.append(_box_dropped(file, row, f"no {error.args[0]}"))
        except (TypeError, ValueError, OverflowError) as error:
            problems.append(_box_dropped(file, row, str(error)))
    return objects


def _box_dropped(file: str, row: dict[str, Any], reason: str) -> Problem:
    return Problem(file=file, kind="box dropped", reason=f"annotation {row.get('id')}: {reason}")


def _object(row: dict[str, Any], names: dict[int, str]) -> Object:
    if row["category_id"] not in names:
        raise ValueError(f"unknown category {row['category_id']}")
    x, y, width, height = (float(value) for value in row["bbox"])
    area = row.get("area")
    return Object(
        name=names[row["category_id"]],
        box=(x, y, x + width, y + height),
        crowd=bool(row.get("iscrowd", 0)),
        area=float(area) if isinstance(area, int | float) and math.isfinite(area) else None,
    )


def _source_images(
    rows: list[dict[str, Any]], files: Files, objects: dict[Any, list[Object]], file: str
) -> Iterator[SourceImage]:
    for row in rows:
        name = str(row.get("file_name") or f"image {row.get('id')}")
        relative = relative_name(name)
        if not _has_id(row) or "file_name" not in row or relative is None:
            reason = f"no id or file_name in {file}, or a path that leads out of --images"
            yield skipped_image(str(row.get("id")), name, reason)
            continue
        try:
            image = files.file(relative)
        except FileError as error:
            yield skipped_image(str(row["id"]), name, f"image file {error}")
            continue
        annotation_file = f"{file} image {row['id']}"
        boxes = objects.get(row["id"], [])
        record = Record(
            str(row["id"]), name, image, annotation_file, _size(row), boxes, layout="xywh"
        )
        yield ParsedImage(record)


def _locate_images(files: Files, rows: list[dict[str, Any]], images: Path) -> Files:
    """Return the files relative to the folder that the file names are relative to."""
    listed = [
        relative for row in rows if (relative := relative_name(str(row.get("file_name") or "")))
    ]
    if not listed or any(name in files for name in listed):
        return files
    paths = defaultdict(list)
    for path in files:
        paths[path.rpartition("/")[2]].append(path)
    folders = {
        path.removesuffix(f"/{name}")
        for name in listed
        for path in paths[name.rpartition("/")[2]]
        if path.endswith(f"/{name}")
    }
    if not folders:
        raise UserError(
            f"--images {images}: none of the {len(listed)} listed images was found, "
            f"for example {listed[0]}"
        )
    if len(folders) > 1:
        some = ", ".join(str(images / folder) for folder in sorted(folders)[:MAX_LISTED_FOLDERS])
        raise UserError(f"--images {images}: images found in several folders; name one: {some}")
    return files.subfolder(folders.pop())


def _has_id(row: dict[str, Any]) -> bool:
    return isinstance(row.get("id"), int | str)


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    try:
        return int(row["width"]), int(row["height"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
