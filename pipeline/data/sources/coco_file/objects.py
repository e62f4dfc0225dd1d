"""The annotations of COCO: objects by the id of their image."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from pipeline.data.shards.problems import Problem
from pipeline.data.shards.sample import Box
from pipeline.data.sources.coco_file.tree import Row
from pipeline.data.sources.record import Object
from pipeline.data.sources.values import read_flag, read_id, read_number
from pipeline.progress import counted

MAX_SHOWN_VALUE = 60  # characters


class AnnotationReader:
    """Reads annotations, and counts what is reported of all of them together."""

    def __init__(
        self,
        names: dict[str, str],
        image_ids: Iterable[str],
        image_files: Collection[str],
        file: str,
    ) -> None:
        self.names, self.image_ids, self.file = names, set(image_ids), file
        self.image_files = image_files
        self.problems: list[Problem] = []
        self.used_categories: set[str] = set()
        self._used_images: set[str] = set()
        self._outlines = 0
        self._unknown_flags: Counter[str] = Counter()

    def read(self, rows: Iterable[Row]) -> dict[str, list[Object]]:
        """Return the objects by the id of their image; what cannot be read is a problem."""
        objects: dict[str, list[Object]] = defaultdict(list)
        for row in rows:
            try:
                category, image_id = self._category(row), self._image_id(row)
                objects[image_id].append(self._object(row, category))
            except ValueError as error:
                reason = f"annotation {_shown(row.get('id'))}: {error}"
                self.problems.append(Problem(file=self.file, kind="box dropped", reason=reason))
        self._report_all()
        return objects

    def _category(self, row: Row) -> str:
        key = _key(row, "category_id")
        self.used_categories.add(key)
        if key not in self.names:
            hint = ", which is a name; the id is needed" if key in self.names.values() else ""
            raise ValueError(f"unknown category {_quoted(key)}{hint}")
        return self.names[key]

    def _image_id(self, row: Row) -> str:
        key = _key(row, "image_id")
        self._used_images.add(key)
        if key not in self.image_ids:
            hint = ", but is a file; the id is needed" if key in self.image_files else ""
            raise ValueError(f"image {_quoted(key)} is not listed{hint}")
        return key

    def _object(self, row: Row, category: str) -> Object:
        x, y, width, height = self._bbox(row)
        area = row.get("area")
        if area is not None:
            number = read_number(area)
            area = math.nan if number is None else number  # replaced, and counted, later
        flag = row.get("iscrowd", 0)
        crowd = False if flag is None else read_flag(flag)
        if crowd is None:
            self._unknown_flags[_shown(flag)] += 1
        return Object(category, (x, y, x + width, y + height), crowd=bool(crowd), area=area)

    def _bbox(self, row: Row) -> Box:
        bbox = row.get("bbox")
        if row.get("segmentation") is not None:  # only if bbox is unusable
            self._outlines += 1
            bbox = row["segmentation"]
        if bbox is None or bbox == []:
            raise ValueError("no bbox and no outline that can be read")
        if isinstance(bbox, list) and len(bbox) == 4:
            x, y, width, height = map(read_number, bbox)
            if x is not None and y is not None and width is not None and height is not None:
                return x, y, width, height
        shown = repr(bbox) if isinstance(bbox, str) else bbox
        raise ValueError(f"bbox is not four numbers: {_shown(shown)}")

    def _report_all(self) -> None:
        def report(kind: Any, reason: str) -> None:
            self.problems.append(Problem(file=self.file, kind=kind, reason=reason))

        if self._outlines:
            count = counted(self._outlines, "annotation")
            report("note", f"{count} without bbox; the box of the segmentation is used")
        for flag, number in self._unknown_flags.items():
            report("repaired", f"iscrowd is {flag} in {counted(number, 'annotation')}; read as 0")
        for name, used, known, what in (
            ("category_id", self.used_categories, set(self.names), "classes"),
            ("image_id", self._used_images, self.image_ids, "images"),
        ):
            if shift := _shift(used, known):
                more = "more" if shift < 0 else "less"
                report(
                    "suspicious",
                    f"every {name} looks 1 {more} than the id that is meant, so that boxes have "
                    f"wrong {what}; correct {name}",
                )


def _key(row: Row, field: str) -> str:
    if field not in row:
        raise ValueError(f"no {field}")
    key = read_id(row[field])
    if key is None:
        raise ValueError(f"{field} is not an id: {_shown(row[field])}")
    return key


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN_VALUE else f"{text[:MAX_SHOWN_VALUE]}..."


def _quoted(key: str) -> str:
    return _shown(key) if key.lstrip("-").isdecimal() else repr(_shown(key))


def _shift(used: set[str], known: set[str]) -> int:
    """Return 1 or -1 if all used ids are known after adding it, and not all without; else 0."""
    if not used or used <= known:
        return 0
    numbers = {int(key) for key in used if key.lstrip("-").isdecimal()}
    if len(numbers) != len(used):
        return 0
    return next((by for by in (1, -1) if {str(n + by) for n in numbers} <= known), 0)
