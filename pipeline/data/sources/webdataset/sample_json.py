"""Read the JSON of one sample: its objects, in the spellings that are in use.

Objects are a list of rows, as COCO's annotations, or columns of the same length, as torchvision's
boxes and labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pipeline.data.shards.sample import Box
from pipeline.data.sources.record import Object
from pipeline.data.sources.values import read_flag, read_id, read_number

BoxFormat = Literal["xywh", "xyxy", "cxcywh"]
ROWS = ("annotations", "objects", "instances")
# Keys of a box, with the format of its four numbers unless the user names another one.
BOXES: dict[str, BoxFormat] = {"bbox": "xywh", "bboxes": "xywh", "boxes": "xyxy", "box": "xyxy"}
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
SIDES = (("left", "top", "width", "height"),)
AMBIGUOUS_SIDES = ("x", "y", "width", "height")
NAMES = ("category_name", "class_name", "label_name", "name", "category", "class", "label")
NUMBERS = ("category_id", "class_id", "label_id", "bbox_label")
COLUMNS = (*NAMES, *NUMBERS, "labels", "classes", "categories", "category_ids", "class_ids")
FLAGS = {"difficult": ("difficult",), "crowd": ("iscrowd", "crowd", "ignore_flag")}
MAX_SHOWN_KEYS, MAX_SHOWN_NUMBERS = 8, 100


class NoObjectsError(ValueError):
    """A JSON without objects in any known spelling; the message names what it has."""


class UnnamedClassError(ValueError):
    """A class is given by a number, and nothing gives its name."""


class ParsedSample(NamedTuple):
    """The content of a JSON: ``size`` is width and height; ``faults`` are of skipped objects."""

    objects: list[Object]
    size: tuple[int, int] | None
    faults: list[str]
    doubts: list[str]


def parse_sample_json(
    tree: Any, names: Mapping[str, str], box_format: BoxFormat | None = None
) -> ParsedSample:
    """Return the objects in the JSON of a sample.

    ``names`` are those of classes by their number, as text; categories in the JSON itself come
    first. Raises NoObjectsError for another content, and UnnamedClassError.
    """
    rows = _rows(tree)
    known = {**names, **_categories(tree)}
    parsed = ParsedSample([], _size(tree), [], [])
    for number, row in enumerate(rows, 1):
        try:
            parsed.objects.append(_object(row, known, box_format, number, parsed.doubts))
        except UnnamedClassError:
            raise
        except ValueError as error:
            parsed.faults.append(f"object {number}: {error}")
    return parsed


def _rows(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, list):
        if all(isinstance(row, dict) for row in tree):
            return tree
        raise NoObjectsError("a list of something else than objects")
    if not isinstance(tree, dict):
        raise NoObjectsError("neither an object nor a list")
    known = [key for key in (*ROWS, *BOXES) if key in tree]
    if known and all(tree[key] in (None, {}) for key in known):
        return []
    for key in ROWS:
        found = tree.get(key)
        if isinstance(found, list) and all(isinstance(row, dict) for row in found):
            return found
        if isinstance(found, dict) and (rows := _columns(found)) is not None:
            return rows
    if (rows := _columns(tree)) is not None:
        return rows
    keys = ", ".join(map(str, list(tree)[:MAX_SHOWN_KEYS])) or "none"
    raise NoObjectsError(
        f"no objects under a known key ({', '.join((*ROWS, *BOXES))}); its keys: {keys}"
    )


def _columns(tree: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return a row for each box of columns such as boxes and labels; None if they have none."""
    key = next((key for key in BOXES if isinstance(tree.get(key), list)), None)
    if key is None:
        return None
    boxes = tree[key]
    if len(boxes) == 4 and all(read_number(value) is not None for value in boxes):
        return [tree]  # one box, not a list of boxes
    label = next((name for name in COLUMNS if isinstance(tree.get(name), list)), None)
    if label is None and boxes:
        raise NoObjectsError(f"{key} without labels; known keys: {', '.join(COLUMNS)}")
    flags = [name for keys in FLAGS.values() for name in keys]
    columns = {
        # Singular names, which rows have.
        "label" if name == label else name: tree[name]
        for name in (label, *flags, "area")
        if name and isinstance(tree.get(name), list)
    }
    for name, column in columns.items():
        if len(column) != len(boxes):
            raise NoObjectsError(f"{len(boxes)} {key}, but {len(column)} values of {name}")
    return [
        {key: box, **{name: column[at] for name, column in columns.items()}}
        for at, box in enumerate(boxes)
    ]


def _categories(tree: Any) -> dict[str, str]:
    rows = tree.get("categories") if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return {}
    return {
        number: str(row["name"])
        for row in rows
        if (number := read_id(row.get("id"))) is not None and row.get("name") is not None
    }


def _size(tree: Any) -> tuple[int, int] | None:
    """Return the annotated width and height, which may be below ``image`` or ``images``."""
    if not isinstance(tree, dict):
        return None
    images = tree.get("images")
    inner = images[0] if isinstance(images, list) and len(images) == 1 else tree.get("image")
    for row in (tree, inner):
        if isinstance(row, dict):
            sides = [read_number(row.get(key)) for key in ("width", "height")]
            if all(side is not None and 0 < side < math.inf for side in sides):
                width, height = (int(side) for side in sides if side is not None)
                return width, height
    return None


def _object(
    row: dict[str, Any],
    names: Mapping[str, str],
    box_format: BoxFormat | None,
    number: int,
    doubts: list[str],
) -> Object:
    flags = {}
    for flag, keys in FLAGS.items():
        given = [key for key in keys if row.get(key) is not None]
        values = [read_flag(row[key]) for key in given]
        if None in values:
            wrong = f"{given[0]} {row[given[0]]!r}"
            doubts.append(f"object {number}: {wrong} is not a flag; read as false")
        flags[flag] = any(values)
    area = read_number(row.get("area"))
    name = _class_name(row, names)
    return Object(name, _box(row, box_format), **flags, area=area)


def _class_name(row: dict[str, Any], names: Mapping[str, str]) -> str:
    """Return the name of an object's class. Raises ValueError."""
    for key in (*NAMES, *NUMBERS):
        value = row.get(key)
        if isinstance(value, dict):
            value = value.get("name", value.get("id"))
        if value is None:
            continue
        if isinstance(value, str) and value in names.values():
            return value
        number = read_id(value)
        if number is not None and number in names:
            return names[number]
        if isinstance(value, str) and value.strip() and key not in NUMBERS:
            return value.strip()
        if number is None:
            raise ValueError(f"{key} {value!r} is neither a name nor a number of a class")
        if not names:
            raise UnnamedClassError(f"{key} {value!r} is a number")
        raise ValueError(f"unknown class {number}; known: {_known(names)}")
    raise ValueError(f"no class; known keys: {', '.join((*NAMES, *NUMBERS))}")


def _known(names: Mapping[str, str]) -> str:
    """Return the known numbers of classes, for a message."""
    if list(names) == [str(number) for number in range(len(names))]:
        return f"0 to {len(names) - 1}"
    return ", ".join(list(names)[:MAX_SHOWN_NUMBERS])


def _box(row: dict[str, Any], box_format: BoxFormat | None) -> Box:
    """Return the corners of an object's box. Raises ValueError."""
    for key, usual in BOXES.items():
        value = row.get(key)
        if isinstance(value, dict):
            return _named_box(value, box_format)
        if value is not None:
            if not isinstance(value, list | tuple) or len(value) != 4:
                raise ValueError(f"{key} has not four numbers")
            return _corners(value, box_format or usual)
    for key in ("bndbox", "bounding_box"):
        if isinstance(row.get(key), dict):
            return _named_box(row[key], box_format)
    return _named_box(row, box_format)


def _named_box(row: dict[str, Any], box_format: BoxFormat | None) -> Box:
    for keys in CORNERS:
        if row.keys() >= set(keys):
            return _corners([row[key] for key in keys], "xyxy")
    for keys in SIDES:
        if row.keys() >= set(keys):
            return _corners([row[key] for key in keys], "xywh")
    if row.keys() >= set(AMBIGUOUS_SIDES):
        if box_format not in ("xywh", "cxcywh"):
            raise ValueError(
                "x and y may be of the corner or of the centre; give --box-format xywh or cxcywh"
            )
        return _corners([row[key] for key in AMBIGUOUS_SIDES], box_format)
    raise ValueError(f"no box; known keys: {', '.join(BOXES)}")


def _corners(values: Sequence[Any], box_format: BoxFormat) -> Box:
    numbers = [read_number(value) for value in values]
    if None in numbers:
        wrong = values[numbers.index(None)]
        raise ValueError(f"{wrong!r} in its box is not a number")
    a, b, c, d = (number for number in numbers if number is not None)
    if box_format == "xyxy":
        return a, b, c, d
    if box_format == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, a + c, b + d
