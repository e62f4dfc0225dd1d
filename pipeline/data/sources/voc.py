"""Read PASCAL VOC of any year, and own data in its layout: Annotations, ImageSets/Main, JPEGImages.

The layouts of annotation tools are read too: ``annotations`` beside ``images``, or both in one
folder. Boxes are 1-based with inclusive ends: x1 = xmin - 1, x2 = xmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import MAX_LABEL_BYTES, File, FileError, Files, open_files
from pipeline.data.sources.record import (
    Images,
    Object,
    Record,
    Source,
    SourceImage,
    estimate_label_bytes,
    skipped_image,
)
from pipeline.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# Folders of the XML and of the images; the first layout found is used.
LAYOUTS = (("Annotations/", "JPEGImages/"), ("annotations/", "images/"), ("", ""))
LISTS = "ImageSets/Main"
MAX_LISTED_DATA_SETS = 5


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message gives the reason."""


def voc_source(root: Path, split: str | None, classes: list[str] | None = None) -> Source:
    """Return the images of one split, or all annotated images if ``split`` is None.

    ``root`` is a folder, a tar or a zip, or a folder inside one, with the data set at any depth.
    Without lists of splits, ``split`` is only a name. Unless given, the classes are collected from
    *all* annotations, which makes splits agree. Raises UserError.
    """
    files, (xml_folder, image_folder) = _find_data_set(open_files(root, "--root"), root)
    annotations = _by_stem(files, xml_folder, (".xml",))
    images = _by_stem(files, image_folder, IMAGE_SUFFIXES)
    lists = files.names(LISTS, (".txt",))
    if split is None or not lists:
        ids = sorted(annotations)
    else:
        ids = _read_split(files, lists, root, split)
    return Source(
        kind="voc",
        name=files.name,
        classes=_class_names(files, annotations) if classes is None else classes,
        images=Images(lambda: _source_images(files, images, annotations, ids)),
        total=len(ids),
        problems=files.problems(),
    )


def _find_data_set(files: Files, root: Path) -> tuple[Files, tuple[str, str]]:
    """Return the one data set with a known layout, at any depth, and its two folders."""
    for xml_folder, image_folder in LAYOUTS:
        with_xml = _parent_folders(files, xml_folder, (".xml",))
        roots = sorted(with_xml & _parent_folders(files, image_folder, IMAGE_SUFFIXES))
        if len(roots) > 1 and "" not in roots:
            some = ", ".join(str(root / folder) for folder in roots[:MAX_LISTED_DATA_SETS])
            raise UserError(f"--root {root}: found {len(roots)} data sets; name one: {some}")
        if roots:
            # Names of folders have no slash at the end.
            return files.subfolder(roots[0]), (xml_folder[:-1], image_folder[:-1])
    raise UserError(
        f"--root {root}: not a VOC data set: no folder Annotations with XML files beside a folder "
        "JPEGImages"
    )


def _parent_folders(files: Files, folder: str, suffixes: tuple[str, ...]) -> set[str]:
    """Return folders, "" or ending in a slash, whose subfolder ``folder`` has such files."""
    parents = {name[: name.rfind("/") + 1] for name in files if name.lower().endswith(suffixes)}
    return {p.removesuffix(folder) for p in parents if f"/{p}".endswith(f"/{folder}")}


def _read_split(files: Files, lists: list[str], root: Path, split: str) -> list[str]:
    known = [Path(name).stem for name in lists]
    if split not in known:
        raise UserError(f"--split {split}: not in {LISTS} of {root}; available: {', '.join(known)}")
    ids = []
    try:
        text = files.read_bytes(f"{LISTS}/{split}.txt", 2**30).decode("utf-8", errors="replace")
    except FileError as error:
        raise UserError(f"--split {split}: {LISTS}/{split}.txt {error}") from None
    for line in text.splitlines():
        image_id, _, flag = line.strip().rpartition(" ")
        # Lists of one class have such a second column. An image may be named 1, too.
        if flag not in ("-1", "0", "1") or not image_id:
            image_id = line
        ids.append(image_id.strip())
    return [image_id for image_id in ids if image_id]


def _class_names(files: Files, annotations: dict[str, str]) -> list[str]:
    names = set()
    for name in annotations.values():
        try:
            tree = _parse(files.file(name))
        except (AnnotationError, FileError):
            continue  # reported when its split is converted
        names |= {_text(item, "name") for item in tree.iter("object")}
    return sorted(names - {""})


@dataclass(frozen=True)
class VocImage:
    """An image whose XML file is read when it is converted."""

    image_id: str
    file_name: str
    image: File
    xml_name: str
    xml: File

    @property
    def estimated_bytes(self) -> int:
        """Return the bytes of the image and about those of its JSON.

        An object takes about 250 bytes of XML.
        """
        return self.image.size + estimate_label_bytes(self.xml.size // 250)

    def read_record(self) -> Record:
        """Read the XML."""
        problems: list[Problem] = []
        try:
            tree = _parse(self.xml)
        except AnnotationError as error:
            problem = Problem(file=self.xml_name, kind="image skipped", reason=str(error))
            return Record(self.image_id, self.file_name, None, self.xml_name, problems=[problem])
        objects = _objects(tree, self.xml_name, problems)
        size = _size(tree)
        return Record(
            self.image_id, self.file_name, self.image, self.xml_name, size, objects, problems
        )


def _source_images(
    files: Files, images: dict[str, str], annotations: dict[str, str], ids: list[str]
) -> Iterator[SourceImage]:
    # Looking names up in the listings keeps an id such as ../x inside the folders.
    for image_id in ids:
        image, xml = images.get(image_id), annotations.get(image_id)
        if image is None or xml is None:
            missing = (
                f"no {image_id}.xml in Annotations" if image else "no such image in JPEGImages"
            )
            yield skipped_image(image_id, image_id, missing)
            continue
        image_name, xml_name = Path(image).name, Path(xml).name
        try:
            yield VocImage(image_id, image_name, files.file(image), xml_name, files.file(xml))
        except FileError as error:
            yield skipped_image(image_id, image_id, str(error))


def _by_stem(files: Files, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    names = files.names(folder, suffixes)
    for suffix in reversed(suffixes):  # the first suffix wins
        found |= {Path(n).stem: n for n in names if n.lower().endswith(suffix)}
    return found


def _parse(file: File) -> Element:
    try:
        root = fromstring(file.read(MAX_LABEL_BYTES), forbid_dtd=True)
    except ParseError as error:
        raise AnnotationError(f"the XML does not parse: {error}") from None
    except DefusedXmlException:
        raise AnnotationError("the XML declares a DTD or entities, which are not allowed") from None
    except FileNotFoundError:
        raise
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
