"""Pair images with their label files, and account for label files without an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.sources.files import FileError, Files
from pipeline.data.sources.paths import fold, image_stem
from pipeline.data.sources.resolve import resolve
from pipeline.data.sources.values import decode_text

MIN_VALUES = 5  # in a line: the class and a box
# The folders of images, and those of their labels.
LABEL_FOLDERS = {"images": "labels", "Images": "Labels", "JPEGImages": "labels"}


def label_path(image: str) -> str:
    """Return the usual path of an image's label file.

    ``labels`` replaces the last folder called ``images`` or ``JPEGImages``, and ``Labels`` that
    called ``Images``; without one it is beside the image.
    """
    *folders, name = image.split("/")
    for at in range(len(folders) - 1, -1, -1):
        if folders[at] in LABEL_FOLDERS:
            folders[at] = LABEL_FOLDERS[folders[at]]
            break
    return "/".join((*folders, f"{name.rpartition('.')[0] or name}.txt"))


class LabelFiles:
    """The label file of each image, where it exists.

    Most are where they usually are; ``problems`` reports the ways in which others were found.
    """

    def __init__(self, files: Files, images: Sequence[str]) -> None:
        self._files = files
        self._unusual: dict[str, str] = {}
        self.problems: list[Problem] = []
        absent = [image for image in images if label_path(image) not in files]
        for image in absent:
            for name in _other_paths(image):
                if name in files:
                    self._unusual[image] = name
                    break
        absent = [image for image in absent if image not in self._unusual]
        if absent:
            self._find_other_forms(absent)
        if len(absent) == len(images) and not self._unusual:
            self._find_other_folders(absent)

    def get(self, image: str) -> str | None:
        """Return the name of an image's label file, or None if it has none."""
        if image in self._unusual:
            return self._unusual[image]
        name = label_path(image)
        return name if name in self._files else None

    def _find_other_forms(self, images: Iterable[str]) -> None:
        """Find label files whose case or Unicode form differs from that of the image."""
        texts = {fold(name): name for name in self._files if name.lower().endswith(".txt")}
        first = ""
        for image in images:
            for name in (label_path(image), *_other_paths(image)):
                if fold(name) in texts:
                    self._unusual[image] = texts[fold(name)]
                    first = first or f"{image} has {texts[fold(name)]}"
                    break
        if first:
            self._report("label files with another case or Unicode form of the name", first)

    def _find_other_folders(self, images: Iterable[str]) -> None:
        """Find label files by their names alone, in any folder."""
        by_entry = {f"{image_stem(image)}.txt": image for image in images}
        texts = [name for name in self._files if name.lower().endswith(".txt")]
        result = resolve(by_entry, texts, self._files.location, "labels")
        self._unusual = {by_entry[entry]: name for entry, name in result.found.items()}
        for image, name in list(self._unusual.items())[:1]:
            self._report("label files in another folder", f"{image} has {name}", "repaired")

    def _report(self, what: str, first: str, kind: ProblemKind = "note") -> None:
        reason = f"{what}; the first: {first}"
        self.problems.append(Problem(file=self._files.location, kind=kind, reason=reason))


def _other_paths(image: str) -> Iterator[str]:
    """Yield where else a label file may be: beside the image, or called like it and .txt."""
    usual, beside = label_path(image), PurePosixPath(image).with_suffix(".txt").as_posix()
    if beside != usual:
        yield beside
    yield f"{usual.removesuffix('.txt')}{PurePosixPath(image).suffix}.txt"


def unused_label_files(
    files: Files, images: Sequence[str], all_images: Sequence[str], labels: LabelFiles
) -> Iterator[Problem]:
    """Yield a problem for each label file, in the folders of those of ``images``, without image."""
    used = {name for image in images if (name := labels.get(image))}
    folders = {name.rpartition("/")[0] for name in used}
    folders |= {label_path(image).rpartition("/")[0] for image in images}
    others = [
        name
        for name in files
        if name.lower().endswith(".txt") and name not in used and name.rpartition("/")[0] in folders
    ]
    left = {fold(name): name for name in others}
    for image in all_images if left else ():
        for name in (label_path(image), *_other_paths(image)):
            left.pop(fold(name), None)
    for name in left.values():
        count = _count_objects(files, name)
        if count is not None:
            stem = PurePosixPath(name).stem
            reason = f"no image {stem} with a known suffix beside it or in its folder of images"
            yield Problem(file=name, kind="file unused", reason=reason, objects=count)


def _count_objects(files: Files, name: str) -> int | None:
    """Return the number of lines of a label file; None if it has other content."""
    try:
        lines = decode_text(files.read_bytes(name)).splitlines()
        rows = [fields for line in lines if (fields := line.split())]
        if rows and len([float(field) for field in rows[0]]) < MIN_VALUES:
            return None
    except (FileError, ValueError):
        return None
    return len(rows)
