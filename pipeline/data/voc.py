"""PASCAL VOC folders: Annotations/ID.xml, ImageSets/Main/SPLIT.txt, JPEGImages/ID.jpg.

Boxes are 1-based with inclusive ends: x1 = xmin - 1, x2 = xmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from pipeline.data.manifest import Problem
from pipeline.data.records import Object, Record, Source
from pipeline.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message says why."""


def voc_source(root: Path, split: str) -> Source:
    """The images of one split. The classes are those of *all* annotations, so that splits agree."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        if not (root / folder).is_dir():
            raise UserError(f"--root {root}: no folder {folder} there, so no VOC data set")
    problems: list[Problem] = []
    ids = _read_split(root, split)
    return Source(
        kind="voc",
        name=root.resolve().name,
        classes=_class_names(root),
        records=_records(root, ids, problems),
        total=len(ids),
        problems=problems,
    )


def _read_split(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Main"
    known = sorted(path.stem for path in folder.glob("*.txt"))
    if split not in known:
        raise UserError(
            f"--split {split}: not in {folder}; there are: {', '.join(known) or 'none'}"
        )
    ids = []
    text = (folder / f"{split}.txt").read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        image_id, _, flag = line.strip().rpartition(" ")
        if flag not in ("-1", "0", "1"):  # the lists of one class have such a second column
            image_id = line
        ids.append(image_id.strip())
    return [image_id for image_id in ids if image_id]


def _class_names(root: Path) -> list[str]:
    names = set()
    for path in (root / "Annotations").glob("*.xml"):
        try:
            names |= {_text(item, "name") for item in _parse(path).iter("object")}
        except AnnotationError:
            continue  # reported when it is the turn of its split
    return sorted(names - {""})


def _records(root: Path, ids: list[str], problems: list[Problem]) -> Iterator[Record]:
    # Looking names up in listings keeps an id such as ../x inside the folders.
    images = _by_stem(root / "JPEGImages")
    annotations = {path.stem: path for path in (root / "Annotations").glob("*.xml")}
    for image_id in ids:
        image, xml = images.get(image_id), annotations.get(image_id)
        if image is None or xml is None:
            missing = (
                f"no {image_id}.xml in Annotations" if image else "no such image in JPEGImages"
            )
            problems.append(Problem(file=image_id, kind="image skipped", reason=missing))
            continue
        try:
            tree = _parse(xml)
        except AnnotationError as error:
            problems.append(Problem(file=xml.name, kind="image skipped", reason=str(error)))
            continue
        objects = _objects(tree, xml.name, problems)
        yield Record(image_id, image.name, image, xml.name, _size(tree), objects)


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for suffix in reversed(SUFFIXES):  # the first suffix wins
        found |= {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() == suffix}
    return found


def _parse(path: Path) -> Element:
    try:
        root = parse(path, forbid_dtd=True).getroot()
    except ParseError as error:
        raise AnnotationError(f"the XML does not parse: {error}") from None
    except DefusedXmlException:
        raise AnnotationError("the XML declares a DTD or entities, which is refused") from None
    except (OSError, ValueError, LookupError) as error:
        raise AnnotationError(f"the XML cannot be read: {error}") from None
    if root is None:
        raise AnnotationError("the XML is empty")
    return root


def _objects(tree: Element, file: str, problems: list[Problem]) -> list[Object]:
    objects = []
    for number, item in enumerate(tree.findall("object"), 1):
        try:
            objects.append(_object(item))
        except AnnotationError as error:
            reason = f"object {number}: {error}"
            problems.append(Problem(file=file, kind="box dropped", reason=reason))
    return objects


def _object(item: Element) -> Object:
    name, box = _text(item, "name"), item.find("bndbox")
    if not name:
        raise AnnotationError("no name")
    if box is None:
        raise AnnotationError(f"{name}: no bndbox")
    x1, y1, x2, y2 = (_number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return Object(name, (x1 - 1, y1 - 1, x2, y2), difficult=_text(item, "difficult") == "1")


def _size(tree: Element) -> tuple[int, int] | None:
    size = tree.find("size")
    if size is None:
        return None
    try:
        return int(_number(size, "width")), int(_number(size, "height"))
    except AnnotationError:
        return None


def _number(parent: Element, tag: str) -> float:
    text = _text(parent, tag)
    try:
        value = float(text)
    except ValueError:
        raise AnnotationError(f"{tag} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise AnnotationError(f"{tag} is {text}, not finite")
    return value


def _text(parent: Element, tag: str) -> str:
    return (parent.findtext(tag) or "").strip()
