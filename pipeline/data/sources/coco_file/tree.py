"""Parse a COCO instances file, and name the other files of COCO that are given by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

from pipeline.data.sources.coco_file.outline import outline_box
from pipeline.data.sources.files import open_file
from pipeline.errors import UserError

Row = dict[str, Any]


class CocoTree(TypedDict):
    """The lists of an instances file.

    In place of the segmentation, an annotation without a usable bbox has the box of its outline.
    """

    images: list[Row]
    annotations: list[Row]
    categories: list[Row]


def read_tree(path: Path) -> CocoTree:
    """Return the content of an instances file, loose or in an archive. Raises UserError."""
    try:
        tree = json.loads(open_file(path, "--annotations"), object_hook=_without_segmentation)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"--annotations {path}: not valid JSON: {error}") from None
    if fault := _fault(tree):
        raise UserError(f"--annotations {path}: not a COCO instances file: {fault}")
    result: CocoTree = tree
    return result


def _without_segmentation(row: Row) -> Row:
    """Drop the segmentation while the file is parsed, which saves most of the memory."""
    if "segmentation" in row:
        segmentation = row.pop("segmentation")
        bbox = row.get("bbox")
        if not (isinstance(bbox, list) and any(bbox)):
            row["segmentation"] = outline_box(segmentation)
    return row


def _fault(tree: Any) -> str | None:
    if isinstance(tree, list):
        return (
            "a list, as files of detections are; an object with images, annotations and categories "
            "is needed"
        )
    if not isinstance(tree, dict):
        return "not a JSON object"
    annotations = tree.get("annotations")
    first = (
        next((row for row in annotations if isinstance(row, dict)), {})
        if (isinstance(annotations, list))
        else {}
    )
    if "segments_info" in first:
        return "a panoptic file; give the instances file of the same images"
    if "caption" in first and "bbox" not in first:
        return "a captions file; give the instances file of the same images"
    for key in ("images", "annotations", "categories"):
        if key not in tree:
            return f"no list of {key}"
        if not isinstance(tree[key], list):
            return f"{key} is not a list"
        for number, row in enumerate(tree[key], 1):
            if not isinstance(row, dict):
                return f"item {number} of {key} is not an object"
    return None
