"""Read COCO instance annotations: one JSON file with images, annotations and categories.

Boxes are x, y, width, height, 0-based. Category ids may have gaps; labels number the categories in
the order of their ids. Ids are compared as `values.read_id` reads them. Segmentations are used only
where an annotation has no bbox.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.coco_file.categories import read_categories, report_group
from pipeline.data.sources.coco_file.file_names import read_file_name
from pipeline.data.sources.coco_file.objects import AnnotationReader
from pipeline.data.sources.coco_file.siblings import names_listed_elsewhere
from pipeline.data.sources.coco_file.tree import Row, read_tree
from pipeline.data.sources.files import FileError, Files, open_files, relative_name
from pipeline.data.sources.paths import IMAGE_SUFFIXES
from pipeline.data.sources.record import (
    Images,
    Object,
    ParsedImage,
    Record,
    Source,
    SourceImage,
)
from pipeline.data.sources.resolve import Resolution, resolve
from pipeline.data.sources.values import read_id, read_number
from pipeline.errors import UserError

MAX_LISTED_FOLDERS, MAX_LISTED_IDS = 5, 20
MAX_SHOWN = 60  # characters of an id


def coco_source(images: Path, annotations: Path) -> Source:
    """Return all images of an annotation file, whose file names are relative to ``images``.

    Both may be in a tar or zip: ``train2017.zip`` and ``annotations.zip/annotations/x.json``.
    Raises UserError.
    """
    tree = read_tree(annotations)
    files = open_files(images, "--images")
    paths = _resolve_paths(files, tree["images"], images, annotations.name)
    problems = [*files.problems(), *paths.problems]
    categories = read_categories(tree["categories"], annotations, problems)
    listing = _Listing(tree["images"], files, paths, annotations.name)
    reader = AnnotationReader(
        categories.names, listing.file_by_id, listing.first_id, annotations.name
    )
    objects = reader.read(tree["annotations"])
    problems += [*reader.problems, *listing.unused_pictures(annotations)]
    report_group(tree["categories"], reader.used_categories, annotations, problems)
    return Source(
        kind="coco",
        name=annotations.stem,
        classes=categories.classes,
        images=Images(lambda: listing.images(objects)),
        total=len(tree["images"]),
        problems=problems,
        category_ids=categories.ids,
    )


@dataclass
class _Listing:
    """The list of images: which file each id means, and which ids each file has."""

    rows: list[Row]
    files: Files
    paths: Resolution
    file: str
    file_by_id: dict[str, str] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)  # files, also those without an id
    first_id: dict[str, str] = field(default_factory=dict)  # by file
    other_ids: dict[str, list[str]] = field(default_factory=dict)  # by file with several
    ambiguous: dict[str, list[str]] = field(default_factory=dict)  # files by id with several
    repeats: Counter[str] = field(default_factory=Counter)  # by file: listed again with its id

    def __post_init__(self) -> None:
        for row in self.rows:
            key, name = read_id(row.get("id")), self._path(row)
            if name is not None:
                self.listed.add(name)
            if key is None or name is None:
                continue
            if self.file_by_id.get(key) == name:
                self.repeats[name] += 1
            other = self.file_by_id.setdefault(key, name)
            if other != name and name not in self.ambiguous.setdefault(key, [other]):
                self.ambiguous[key].append(name)
            if self.first_id.setdefault(name, key) != key:
                self.other_ids.setdefault(name, []).append(key)

    def _path(self, row: Row) -> str | None:
        """Return the file among those of the source, or the path as written if there is none."""
        name = read_file_name(row)
        return self.paths.found.get(name, name) if isinstance(name, str) and name else None

    def images(self, objects: Mapping[str, list[Object]]) -> Iterator[SourceImage]:
        """Yield each file once, with the objects of all its ids, in the order of the list."""
        seen: set[str] = set()
        left = dict(objects)  # those of an id that stands for two files are counted once
        doubtful = self._doubtful_files()
        for row in self.rows:
            key, path = read_id(row.get("id")), self._path(row)
            name = str(read_file_name(row) or f"image {row.get('id')}")
            if key is None or path is None:
                yield self._skipped(key or str(row.get("id")), name, self._fault(row), [])
            elif path not in seen:
                seen.add(path)
                ids = list(dict.fromkeys([key, *self.other_ids.get(path, [])]))
                found = [item for one in ids for item in left.pop(one, ())]
                if path in doubtful:
                    yield self._skipped(key, name, doubtful[path], found)
                else:
                    yield self._image(row, ids, name, path, found)

    def _doubtful_files(self) -> dict[str, str]:
        """Return the reason for each file whose boxes may be those of another file."""
        reasons = {}
        for key, names in self.ambiguous.items():
            shown = ", ".join(names[:MAX_LISTED_FOLDERS])
            for name in names:
                reasons[name] = (
                    f"id {key} stands for {len(names)} files ({shown}), so that its boxes may be "
                    "of any of them; give each its own id"
                )
        return reasons

    def _fault(self, row: Row) -> str:
        key = "id" if read_id(row.get("id")) is None else "file_name"
        if (value := row.get(key)) in (None, ""):
            return f"no {key} in {self.file}"
        what = "a number or text" if key == "id" else "text"
        return f"{key} in {self.file} is not {what}: {str(value)[:MAX_SHOWN]}"

    def _image(
        self, row: Row, ids: list[str], name: str, path: str, objects: list[Object]
    ) -> SourceImage:
        if path in self.paths.missing:
            return self._skipped(ids[0], name, f"image file {self.paths.missing[path]}", objects)
        problems = []
        if len(ids) > 1:
            reason = (
                f"listed with the ids {', '.join(ids[:MAX_LISTED_IDS])}; merged into one sample"
            )
            problems.append(Problem(file=name, kind="repaired", reason=reason))
        if self.repeats[path]:
            reason = f"listed {self.repeats[path] + 1} times with the same id; kept once"
            problems.append(Problem(file=name, kind="note", reason=reason))
        try:
            image = self.files.file(path)
        except FileError as error:
            return self._skipped(ids[0], name, f"image file {error}", objects)
        source = f"{self.file} image {ids[0]}"
        if relative_name(name) != name:  # of another machine, or with a key in a URL
            name = path
        return ParsedImage(
            Record(ids[0], name, image, source, _size(row), objects, problems, layout="xywh")
        )

    def _skipped(self, key: str, name: str, reason: str, objects: list[Object]) -> SourceImage:
        problem = Problem(file=name, kind="image skipped", reason=reason)
        return ParsedImage(Record(key, name, None, name, objects=objects, problems=[problem]))

    def unused_pictures(self, annotations: Path) -> Iterator[Problem]:
        """Yield the pictures that neither this nor another file of the data set lists.

        A folder without listed pictures is one problem.
        """
        used = {name.rpartition("/")[0] for name in self.listed if name in self.files}
        others: dict[str, list[str]] = defaultdict(list)
        unused = [
            name
            for name in self.files
            if name not in self.listed and name.lower().endswith(IMAGE_SUFFIXES)
        ]
        elsewhere = names_listed_elsewhere(annotations, self.files) if unused else set()
        for name in unused:
            folder, _, last = name.rpartition("/")
            if last in elsewhere:
                continue
            if folder in used:
                reason = f"a picture that {self.file} does not list"
                yield Problem(file=name, kind="file unused", reason=reason)
            else:
                others[folder].append(name)
        for folder, names in others.items():
            reason = f"{self.file} lists none of its {len(names)} pictures, such as {names[0]}"
            yield Problem(file=folder or ".", kind="file unused", reason=reason)


def _resolve_paths(files: Files, rows: list[Row], images: Path, file: str) -> Resolution:
    """Return the file that each file name means. Raises UserError if there is none at all."""
    listed = [name for row in rows if isinstance(name := read_file_name(row), str) and name]
    paths = resolve(listed, files, str(images), file)
    if paths.found or not listed:
        return paths
    folders = {name.rpartition("/")[0] for names in paths.ambiguous.values() for name in names}
    if folders:
        some = ", ".join(str(images / folder) for folder in sorted(folders)[:MAX_LISTED_FOLDERS])
        raise UserError(f"--images {images}: images found in several folders; name one: {some}")
    raise UserError(
        f"--images {images}: none of the {len(paths.missing)} listed images was found, for example "
        f"{listed[0]}: {paths.missing[listed[0]]}"
    )


def _size(row: Row) -> tuple[int, int] | None:
    sides = [read_number(row.get(name)) for name in ("width", "height")]
    if any(side is None or not math.isfinite(side) for side in sides):
        return None
    width, height = (int(side or 0) for side in sides)
    return width, height
