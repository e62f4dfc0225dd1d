"""Find the labelled data in a folder: its format, its splits, and a source of each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.shards.manifest import MANIFEST, load_manifest
from pipeline.data.sources.coco import coco_source
from pipeline.data.sources.files import File, open_files
from pipeline.data.sources.paths import IMAGE_SUFFIXES
from pipeline.data.sources.record import Source
from pipeline.data.sources.voc import voc_source
from pipeline.data.sources.yolo import yolo_source
from pipeline.errors import UserError
from pipeline.start.formats import (
    Format,
    describe_absence,
    find_formats,
    find_tar,
    find_tars,
    other_labels,
)
from pipeline.start.splits import use_of

KINDS = {
    "voc": "VOC",
    "coco": "COCO",
    "yolo": "YOLO",
    "webdataset": "WebDataset",
    "shards": "shard sets",
}

OPTIONS = ("--classes", "--classes-from", "--format", "--out")  # of `jobs.start`
_OPTION = re.compile(r"(?<![^\s(])--[a-z][a-z-]*\b(?!\.\w)")
_ELSEWHERE = "DIR may be the shard sets that it writes"


@dataclass(frozen=True)
class Data:
    """A labelled data set: ``splits`` by use, each with its name in the source.

    The name is that of a split (VOC, YOLO), of a JSON (COCO), a pattern of tars (WebDataset) or a
    folder (shard sets), relative to ``path``. ``also`` is another format of the same images;
    ``notes`` are about files that are not used, and ``held`` has the file names of test images
    whose labels are nowhere. ``labelled`` are the images with a label file of their own by name.
    """

    path: Path
    kind: str
    splits: dict[str, str]
    classes: list[str] | None = None
    also: str | None = None
    notes: list[str] = field(default_factory=list)
    held: frozenset[str] = frozenset()
    labelled: Mapping[str, File] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Return a name for the data set: that of its folder or archive."""
        return name_of(self.path)

    def source(self, split: str) -> Source:
        """Return the images of a split, a key of ``splits``. Raises UserError, OutageError.

        Those of the test part may have no labels: they are kept out of the other parts.
        """
        with without_options():
            return self._source(self.splits[split], split == "test")

    def _source(self, name: str, allow_no_labels: bool) -> Source:
        if self.kind == "voc":
            return voc_source(self.path, name or None, self.classes)
        if self.kind == "yolo":
            return yolo_source(
                self.path, name or None, self.classes, allow_no_labels=allow_no_labels
            )
        if self.kind == "coco":
            file = self.path / name
            beside = file.parent.is_dir() and any(
                path.suffix.lower() in IMAGE_SUFFIXES for path in file.parent.iterdir()
            )
            return coco_source(file.parent if beside else self.path, file)
        from pipeline.data.sources.webdataset.source import webdataset_source  # slow to import

        if self.kind == "webdataset":
            return webdataset_source(str(self.path / name), self.classes)
        folder = self.path / name
        return webdataset_source(str(folder / "shard-*.tar"), load_manifest(folder).classes)


def name_of(path: Path) -> str:
    """Return a name for the data set in a folder or an archive."""
    name = path.absolute().name
    for suffix in (".zip", ".tar", ".tgz", ".tar.gz"):
        name = name.removesuffix(suffix)
    return name or "data"


@contextlib.contextmanager
def without_options() -> Iterator[None]:
    """Name no options of `jobs.prepare` in errors before paths, and others as such."""
    try:
        yield
    except UserError as error:
        text = str(error).replace(", or a JSON with categories with --annotations", "")
        text = re.sub(r" as --(root|images)\b", " as DIR", text)
        text = re.sub(r"(^|[\s;])--(root|images|annotations|shards):? (?=\S)", r"\1", text)
        text = re.sub(r"^--out (?=\S)", "", text).replace("--split ", "split ")
        others = [one for one in dict.fromkeys(_OPTION.findall(text)) if one not in OPTIONS]
        if others and not text.endswith(_ELSEWHERE):
            text += f"; only jobs.prepare has {' and '.join(others)}; {_ELSEWHERE}"
        raise UserError(text) from None


def find_data(path: Path, kind: str | None = None, classes: list[str] | None = None) -> Data:
    """Return the one labelled data set in a folder, a tar or a zip.

    ``kind`` is the format to use if there are several; ``classes`` names the numbers of labels
    that have no names. Raises UserError if there is none, or if formats have different images.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or archive")
    if path.is_dir():
        if kind in (None, "shards") and (sets := _find_shard_sets(path)):
            return Data(path, "shards", sets, classes)
        tars = find_tars(path) if kind in (None, "webdataset") else None
        if tars is not None:
            return Data(path, "webdataset", tars.splits, classes)
    with without_options():
        files = open_files(path, "--root")
        found = find_formats(files, path, classes) if kind != "webdataset" else []
    if kind is not None:
        found = [one for one in found if one.kind == kind]
    if not found and kind in (None, "webdataset") and (tar := find_tar(path)):
        folder = path.absolute().parent
        if path.name.startswith("shard-") and (folder / MANIFEST).is_file():
            raise UserError(f"{path} is one shard of a set; give its folder, {folder}")
        if kind or not other_labels(files):
            return Data(path, "webdataset", tar.splits, classes)
    if not found and kind is not None:
        raise UserError(f"{path}: no {KINDS[kind]} data set found")
    if not found:
        raise UserError(describe_absence(files, path))
    chosen = max(found, key=lambda one: len(one.splits))  # the first of those with most splits
    other = _check_same_images(chosen, found, path)
    details = chosen.notes, chosen.held, chosen.labelled
    return Data(path, chosen.kind, chosen.splits, classes, other, *details)


def _check_same_images(chosen: Format, found: list[Format], path: Path) -> str | None:
    """Return another format of the same images. Raises UserError if one has other images."""
    others = [one for one in found if one is not chosen]
    for other in others:
        if not other.images <= chosen.images:
            raise UserError(
                f"{path}: two formats: {KINDS[chosen.kind]} ({len(chosen.images)} images) and "
                f"{KINDS[other.kind]} ({len(other.images)} images); choose with --format "
                f"{chosen.kind} or {other.kind}"
            )
    return KINDS[others[0].kind] if others else None


def _find_shard_sets(path: Path) -> dict[str, str]:
    """Return the folders of the shard sets in a folder by their use, empty if there are none."""
    found: dict[str, str] = {}
    for manifest in sorted([*path.glob(MANIFEST), *path.glob(f"*/{MANIFEST}")]):
        if not (folder := manifest.parent).joinpath("shard-000000.tar").is_file():
            continue
        use = use_of(load_manifest(folder).split)
        if use in found:
            raise UserError(
                f"{path}: two shard sets of {use}: {found[use] or '.'} and {folder.name}; give the "
                "folder of one data set, or move one away"
            )
        found[use] = "" if folder == path else folder.name
    return found
