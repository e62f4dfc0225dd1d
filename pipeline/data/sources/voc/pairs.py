"""Pair the XML files of a data set with its images, and account for those that have no partner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import FileError, Files
from pipeline.data.sources.paths import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, image_stem
from pipeline.data.sources.resolve import resolve
from pipeline.data.sources.voc.annotation import AnnotationError, image_file_name, parse_xml
from pipeline.data.sources.voc.layout import Layout, Part, is_split_folder
from pipeline.progress import counted

MAX_LISTED_FILES = 1000
ALL_SUFFIXES = (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES)


class Unused(NamedTuple):
    """Name of an image that belongs to no XML file, and the reason."""

    name: str
    reason: str


@dataclass
class Pairs:
    """Names of XML files and images by image id, which is the path without suffix."""

    xml: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    unused: dict[str, list[Unused]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def pair_files(layout: Layout) -> Pairs:
    """Return the pairs of all parts of a data set.

    An image is found by the name of the XML file, with or without the image's suffix. If there are
    several, or none, the XML file names it.
    """
    found = Pairs()
    for part in layout.parts:
        _PartPairs(layout.files, part, found).add_all()
    return found


class _PartPairs:
    """Pairs the files of one part; names are relative to the folders of the part."""

    def __init__(self, files: Files, part: Part, found: Pairs) -> None:
        self.files, self.part, self.found = files, part, found
        self.xml = _relative(files, part.xml_folder, (".xml",))
        self.images = _relative(files, part.image_folder, ALL_SUFFIXES)
        self.by_stem: dict[str, str] = {}
        self.more: dict[str, list[str]] = defaultdict(list)  # images of the same stem
        for image in self.images:
            stem = image_stem(image)
            if self.by_stem.setdefault(stem, image) != image:
                self.more[stem].append(image)
        self.used: dict[str, str] = {}  # XML file of each image
        self.passed_over: dict[str, str] = {}  # images of the same stem as a used one

    def add_all(self) -> None:
        """Add the pairs of the part to those that were found."""
        single: list[str] = []
        for xml in self.xml:
            stem = xml.removesuffix(xml[-4:])
            candidates = [stem] if stem in self.images else self._candidates(stem)
            if not candidates:
                single.append(xml)
                continue
            image = self._named(xml, candidates) if len(candidates) > 1 else candidates[0]
            if owner := self.used.get(image):
                reason = f"its image {image} belongs to {owner}; left out"
                problem = Problem(file=self.xml[xml], kind="file unused", reason=reason)
                self.found.problems.append(problem)
            else:
                self._use(xml, image)
        if single:
            single = self._resolve({xml: image_stem(xml[:-4]) for xml in single}, by_stem=True)
        if single:
            named = {xml: name for xml in single if (name := self._file_name(xml))}
            rest = self._resolve(named, by_stem=False)
            single = [xml for xml in single if xml not in named or xml in rest]
        for xml in single:
            self._add(xml, None)
        for image, name in self.images.items():
            if image not in self.used:
                reason = self.passed_over.get(image, "there is no XML file for it")
                key = _join(self.part.prefix, image_stem(image))
                self.found.unused.setdefault(key, []).append(Unused(name, reason))

    def _candidates(self, stem: str) -> list[str]:
        for name in (stem, image_stem(stem)):
            if name in self.by_stem:
                return sorted([self.by_stem[name], *self.more.get(name, ())], key=_preference)
        return []

    def _named(self, xml: str, candidates: list[str]) -> str:
        """Return the image of the same stem that the XML file names, else the first."""
        name = self._file_name(xml)
        fitting = [c for c in candidates if PurePosixPath(c).name.lower() == name.lower()]
        chosen = fitting[0] if fitting else candidates[0]
        why = "which the XML file names" if fitting else "and the XML file names neither"
        for other in candidates:
            if other != chosen:
                reason = f"it is named like {PurePosixPath(chosen).name}, {why}"
                self.passed_over[other] = reason
        return chosen

    def _file_name(self, xml: str) -> str:
        try:
            return image_file_name(parse_xml(self.files.file(self.xml[xml])))
        except (AnnotationError, FileError):
            return ""  # reported when the file is converted

    def _resolve(self, entries: Mapping[str, str], by_stem: bool) -> list[str]:
        """Use the free images that entries of XML files mean; return the files without one."""
        free = [image for image in self.images if image not in self.used]
        names = {image_stem(image) if by_stem else image: image for image in free}
        where = self.part.image_folder or self.files.location
        listed_in = self.part.xml_folder or self.files.location
        result = resolve(entries.values(), names, where, listed_in)
        left = []
        for xml, entry in entries.items():
            image = names.get(result.found.get(entry, ""))
            if image is None or image in self.used:
                left.append(xml)
            else:
                self._use(xml, image)
        if not by_stem and len(left) < len(entries):
            reason = (
                f"{counted(len(entries) - len(left), 'XML file')} named otherwise than the image; "
                "each is paired with the image that its <filename> names"
            )
            self.found.problems.append(Problem(file=listed_in, kind="repaired", reason=reason))
        self.found.problems += result.problems
        return left

    def _use(self, xml: str, image: str) -> None:
        self.used[image] = xml
        self._add(xml, self.images[image])

    def _add(self, xml: str, image: str | None) -> None:
        """Add a pair; its id has no suffix unless another image has the same id."""
        key = _join(self.part.prefix, image_stem(xml[:-4]))
        if key in self.found.xml:
            key = _join(self.part.prefix, xml[:-4])
        self.found.xml[key] = self.xml[xml]
        if image is not None:
            self.found.images[key] = image


def _relative(files: Files, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Return the files below a folder by their names relative to the folder that has them all.

    A folder named like a split remains part of the names.
    """
    names = sorted(n for n in files if n.lower().endswith(suffixes) and _is_below(n, folder))
    if not names:
        return {}
    base = commonpath({name.rpartition("/")[0] for name in names})
    below = base[len(folder) :].strip("/").split("/") if len(base) > len(folder) else []
    for at, name in enumerate(below):
        if is_split_folder(name):
            base = _join(folder, "/".join(below[:at]))
            break
    start = len(base) + 1 if base else 0
    return {name[start:]: name for name in names}


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _preference(image: str) -> int:
    return ALL_SUFFIXES.index(image[len(image_stem(image)) :].lower())


def unused_problems(unused: Sequence[Unused], folder: str) -> Iterator[Problem]:
    """Yield a problem for each image in no sample, up to a limit, and one for the rest."""
    for name, reason in unused[:MAX_LISTED_FILES]:
        yield Problem(file=name, kind="file unused", reason=f"{reason}; left out")
    if (more := len(unused) - MAX_LISTED_FILES) > 0:
        reason = f"{counted(more, 'more image')} left out"
        yield Problem(file=folder, kind="file unused", reason=reason)
