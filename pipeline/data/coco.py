"""COCO instance annotations: one JSON file with images, annotations and categories.

Boxes are x, y, width, height, 0-based. Category ids may have gaps; labels count through the
categories in the order of their ids. Segmentations are not needed, and not kept.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Problem
from pipeline.data.records import Object, Record, Source
from pipeline.errors import UserError


def coco_source(images: Path, annotations: Path) -> Source:
    """All images of an annotation file; ``images`` is the folder that its file names start from."""
    if not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    tree = _read(annotations)
    problems: list[Problem] = []
    classes, names, ids = _categories(tree, annotations, problems)
    objects = _by_image(tree, names, annotations.name, problems)
    return Source(
        kind="coco",
        name=annotations.stem,
        classes=classes,
        records=_records(tree["images"], images, objects, annotations.name, problems),
        total=len(tree["images"]),
        problems=problems,
        category_ids=ids,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"--annotations {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--annotations {path}: not valid JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        rows = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"--annotations {path}: no list of {key}, so no COCO instances file")
    return tree


def _categories(
    tree: dict[str, Any], path: Path, problems: list[Problem]
) -> tuple[list[str], dict[int, str], list[int]]:
    """Class names in the order of their ids, the name of each id, and the id of each class."""
    try:
        names = {int(row["id"]): str(row["name"]) for row in tree["categories"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--annotations {path}: a category lacks its id or name") from None
    first: dict[str, int] = {}
    for number in sorted(names):
        if names[number] in first:
            reason = f"category {number} has the name of {first[names[number]]}, taken as the same"
            problems.append(Problem(file=path.name, kind="mended", reason=reason))
        first.setdefault(names[number], number)
    return list(first), names, list(first.values())


def _by_image(
    tree: dict[str, Any], names: dict[int, str], file: str, problems: list[Problem]
) -> dict[Any, list[Object]]:
    known = {row.get("id") for row in tree["images"]}
    objects: dict[Any, list[Object]] = defaultdict(list)
    for row in tree["annotations"]:
        try:
            if row["image_id"] not in known:
                raise ValueError(f"image {row['image_id']} is not listed")
            objects[row["image_id"]].append(_object(row, names))
        except KeyError as error:
            problems.append(_dropped(file, row, f"no {error.args[0]}"))
        except (TypeError, ValueError) as error:
            problems.append(_dropped(file, row, str(error)))
    return objects


def _dropped(file: str, row: dict[str, Any], reason: str) -> Problem:
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


def _records(
    rows: list[dict[str, Any]],
    images: Path,
    objects: dict[Any, list[Object]],
    file: str,
    problems: list[Problem],
) -> Iterator[Record]:
    root = images.resolve()
    for row in rows:
        name = str(row.get("file_name") or f"image {row.get('id')}")
        path = (root / name).resolve()
        if "id" not in row or "file_name" not in row or not path.is_relative_to(root):
            reason = f"no id or file_name in {file}, or a path that leaves --images"
            problems.append(Problem(file=name, kind="image skipped", reason=reason))
            continue
        size = (row["width"], row["height"]) if "width" in row and "height" in row else None
        blamed = f"{file} image {row['id']}"
        yield Record(str(row["id"]), name, path, blamed, size, objects.get(row["id"], []))
