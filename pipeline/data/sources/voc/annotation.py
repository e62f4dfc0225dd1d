"""Parse the XML file of one image: its objects, its size and the name of the image.

Tags are read in any case and without their namespace.

Corners are inclusive: x1 = xmin - first and x2 = xmax - first + 1, where ``first`` is the number of
the first pixel. It is 1 in VOC; some tools write 0.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pipeline.data.shards.problems import Problem
from pipeline.data.shards.sample import Box
from pipeline.data.sources.files import MAX_LABEL_BYTES, File
from pipeline.data.sources.record import Object
from pipeline.data.sources.values import read_flag

_DECLARED_ENCODING = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)""")


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message gives the reason."""


@dataclass
class Annotation:
    """Content of an XML file.

    ``zero_corners`` counts boxes that begin before the first pixel, ``swapped`` those whose corners
    were exchanged; ``written_corners`` has the corners of all boxes as they were written.
    """

    size: tuple[int, int] | None
    objects: list[Object] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    zero_corners: int = 0
    swapped: int = 0
    written_corners: list[Box] = field(default_factory=list)


def read_annotation(file: File, name: str, first: int) -> Annotation:
    """Return the content of the XML file of that name. Raises AnnotationError."""
    tree = parse_xml(file)
    found = Annotation(_size(tree))
    for number, item in enumerate(_objects(tree), 1):
        title = f"object {number}"
        boxes: list[Element | None] = [*item.findall("bndbox")]
        if len(boxes) > 1:
            reason = f"{title}: it has {len(boxes)} bndbox; each is read as an object"
            found.problems.append(Problem(file=name, kind="repaired", reason=reason))
        for box in boxes or [None]:
            try:
                _add_object(found, item, box, title, name, first)
            except AnnotationError as error:
                reason = f"{title}: {error}"
                found.problems.append(Problem(file=name, kind="box dropped", reason=reason))
    return found


def parse_xml(file: File) -> Element:
    """Return the root of an XML file, with lower-case tags without namespace.

    Raises AnnotationError, also if it is not a VOC annotation, or FileNotFoundError.
    """
    data = b""
    try:
        data = file.read(MAX_LABEL_BYTES)
        root = fromstring(_as_text(data), forbid_dtd=True)
    except ParseError as error:
        if _is_unreadable_as_unicode(data):
            reason = "the XML is not UTF-8 and declares no other encoding; save it as UTF-8"
            raise AnnotationError(reason) from None
        raise AnnotationError(f"the XML does not parse: {error}") from None
    except DefusedXmlException:
        raise AnnotationError("the XML declares a DTD or entities, which are not allowed") from None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError) as error:
        raise AnnotationError(f"the XML cannot be read: {error}") from None
    if root is None:
        raise AnnotationError("the XML is empty")
    written = root.tag.rpartition("}")[2]
    for item in root.iter():
        tag = item.tag
        if not tag.islower() or "}" in tag:
            item.tag = tag.rpartition("}")[2].lower()
    _check_is_voc(root, written)
    return root


def _as_text(data: bytes) -> bytes | str:
    """Decode XML in a declared encoding, as the parser knows none with several bytes a character.

    Raises ValueError and LookupError.
    """
    match = _DECLARED_ENCODING.match(data)
    if match is None or match[1].lower().startswith(b"utf"):
        return data
    name = match[1].decode()
    # Files that declare GB2312 also have characters of its supersets.
    return data.decode("gb18030" if name.lower() in ("gb2312", "gbk") else name)


def _is_unreadable_as_unicode(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return not data.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    return False


def _check_is_voc(root: Element, written: str) -> None:
    """Raise AnnotationError if a tree without objects is not a VOC annotation without objects."""
    if any(True for _ in _objects(root)):
        return
    known = any(root.find(tag) is not None for tag in ("filename", "size"))
    if root.tag != "annotation" and not known:
        raise AnnotationError(f"the XML is not VOC: its root is <{written}>, not <annotation>")
    for parent in root.iter():
        if parent.find("bndbox") is not None:
            raise AnnotationError(f"no <object>, but <bndbox> in <{parent.tag}>")


def _objects(tree: Element) -> Iterator[Element]:
    """Yield the objects at any depth, in the order of the file, except those inside parts."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if item.tag == "object":
            yield item
        # Most elements have no children: they are not worth a turn.
        stack += [
            child
            for child in reversed(item)
            if child.tag != "part" and (len(child) or child.tag == "object")
        ]


def class_names(tree: Element) -> set[str]:
    """Return the names of all objects."""
    return {_text(item, "name") for item in _objects(tree)} - {""}


def image_file_name(tree: Element) -> str:
    """Return the file name of the image without folders; empty if there is none."""
    return PurePosixPath(_text(tree, "filename").replace("\\", "/")).name


def _add_object(
    found: Annotation, item: Element, corners: Element | None, title: str, file: str, first: int
) -> None:
    name = _text(item, "name")
    if not name:
        raise AnnotationError("no name")
    if corners is None:
        raise AnnotationError(f"{name}: no bndbox")
    x1, y1, x2, y2 = (_number(corners, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    found.written_corners.append((x1, y1, x2, y2))
    # A difference of -1 is a box without pixels.
    if x2 < x1 - 1 or y2 < y1 - 1:
        x1, x2 = (x2, x1) if x2 < x1 - 1 else (x1, x2)
        y1, y2 = (y2, y1) if y2 < y1 - 1 else (y1, y2)
        found.swapped += 1
        reason = f"{title}: the corners of {name} are swapped; exchanged"
        found.problems.append(Problem(file=file, kind="repaired", reason=reason))
    difficult = read_flag(_text(item, "difficult") or "0")
    if difficult is None:
        shown = _text(item, "difficult")[:40]
        reason = f"{title}: difficult is {shown!r}, neither true nor false; read as false"
        found.problems.append(Problem(file=file, kind="repaired", reason=reason))
    if first == 1 and (0 <= x1 < 1 or 0 <= y1 < 1):
        found.zero_corners += 1
        x1, y1 = (1 if 0 <= corner < 1 else corner for corner in (x1, y1))
    box = x1 - first, y1 - first, x2 - first + 1, y2 - first + 1
    found.objects.append(Object(name, box, difficult=bool(difficult)))


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
