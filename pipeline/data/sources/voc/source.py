"""The images of a VOC data set, whose XML files are read when they are converted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import File, FileError, Files, open_files, unreadable_format
from pipeline.data.sources.record import (
    Images,
    Record,
    Source,
    SourceImage,
    estimate_label_bytes,
    skipped_image,
)
from pipeline.data.sources.voc.annotation import (
    AnnotationError,
    class_names,
    parse_xml,
    read_annotation,
)
from pipeline.data.sources.voc.layout import find_layout
from pipeline.data.sources.voc.pairs import Pairs, pair_files, unused_problems
from pipeline.data.sources.voc.splits import select_split


def voc_source(
    root: Path, split: str | None, classes: list[str] | None = None, corners_from: int = 1
) -> Source:
    """Return the images of one split, or all annotated images if ``split`` is None.

    ``root`` is a folder, a tar or a zip, or a folder inside one, with the data set at any depth.
    ``corners_from`` is the number of the first pixel in the XML files, 0 or 1. Unless given, the
    classes are collected from *all* annotations, which makes splits agree. Raises UserError.
    """
    layout = find_layout(open_files(root, "--root"), root)
    files, pairs = layout.files, pair_files(layout)
    selected = select_split(files, pairs, root, split)
    xml_folder, image_folder, _ = layout.parts[0]
    where = (xml_folder or files.name, image_folder or files.name)

    def others() -> list[str]:
        chosen = set(selected.ids)
        return sorted(key for key in pairs.images if key not in chosen)

    return Source(
        kind="voc",
        name=files.name,
        classes=_class_names(files, pairs.xml.values()) if classes is None else classes,
        images=Images(lambda: _source_images(files, pairs, selected.ids, corners_from, where)),
        total=len(selected.ids),
        other_images=Images(lambda: _source_images(files, pairs, others(), corners_from, where)),
        problems=[
            *files.problems(),
            *pairs.problems,
            *selected.problems,
            *unused_problems(selected.unused, where[1]),
        ],
    )


def _class_names(files: Files, annotations: Iterable[str]) -> list[str]:
    names: set[str] = set()
    for name in annotations:
        try:
            names |= class_names(parse_xml(files.file(name)))
        except (AnnotationError, FileError):
            continue  # reported when its split is converted
    return sorted(names)


@dataclass(frozen=True)
class VocImage:
    """An image whose XML file is read when it is converted."""

    image_id: str
    file_name: str
    image: File
    xml_name: str
    xml: File
    corners_from: int

    @property
    def estimated_bytes(self) -> int:
        """Return the bytes of the image and about those of its JSON.

        An object takes about 250 bytes of XML.
        """
        return self.image.size + estimate_label_bytes(self.xml.size // 250)

    def read_record(self) -> Record:
        """Read the XML."""
        try:
            found = read_annotation(self.xml, self.xml_name, self.corners_from)
        except AnnotationError as error:
            problem = Problem(file=self.xml_name, kind="image skipped", reason=str(error))
            return Record(self.image_id, self.file_name, None, self.xml_name, problems=[problem])
        return Record(
            self.image_id,
            self.file_name,
            self.image,
            self.xml_name,
            found.size,
            found.objects,
            found.problems,
            zero_corners=found.zero_corners,
            swapped=found.swapped,
            written_corners=found.written_corners,
        )


def _source_images(
    files: Files, pairs: Pairs, ids: Iterable[str], corners_from: int, where: tuple[str, str]
) -> Iterator[SourceImage]:
    # Looking names up in the listings keeps an id such as ../x inside the folders.
    for image_id in ids:
        image, xml = pairs.images.get(image_id), pairs.xml.get(image_id)
        if image is None or xml is None:
            has_image = image is not None or image_id in pairs.unused
            name, folder = (f"{image_id}.xml", where[0]) if has_image else ("such image", where[1])
            fault = _fault(files, xml) if xml else None
            yield skipped_image(image_id, image_id, fault or f"no {name} in {folder}")
            continue
        # The names below the folders, without them.
        image_name, xml_name = _short(image, image_id), _short(xml, image_id)
        try:
            file = files.file(image)
            if reason := unreadable_format(image, file):
                yield skipped_image(image_id, image_name, reason)
                continue
            yield VocImage(image_id, image_name, file, xml_name, files.file(xml), corners_from)
        except FileError as error:
            yield skipped_image(image_id, image_id, str(error))


def _fault(files: Files, name: str) -> str | None:
    """Return why an XML file cannot be used, if so."""
    try:
        parse_xml(files.file(name))
    except (AnnotationError, FileError, FileNotFoundError) as error:
        return str(error)
    return None


def _short(name: str, image_id: str) -> str:
    """Return the end of a path that has as many parts as an id."""
    return "/".join(name.split("/")[-1 - image_id.count("/") :])
