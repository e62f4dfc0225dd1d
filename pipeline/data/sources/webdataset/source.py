"""The source of WebDataset shards: one kind of labels for all samples, found in the first shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import open_file
from pipeline.data.sources.record import ParsedImage, Record, Source, SourceImage
from pipeline.data.sources.values import read_id
from pipeline.data.sources.webdataset.fetched_tar import FetchedTar
from pipeline.data.sources.webdataset.json_image import Names
from pipeline.data.sources.webdataset.labels import LabelReader
from pipeline.data.sources.webdataset.listing import ListedShard, list_shard
from pipeline.data.sources.webdataset.pattern import expand_shards, shard_names
from pipeline.data.sources.webdataset.sample_json import BoxFormat
from pipeline.errors import UserError
from pipeline.progress import Progress, counted

KEPT_BYTES = 8 * 2**30


def webdataset_source(
    pattern: str,
    classes: list[str] | None = None,
    annotations: Path | None = None,
    box_format: BoxFormat | None = None,
) -> Source:
    """Return the images of the shards that a pattern such as ``URI/{000..009}.tar`` names.

    ``classes`` are names in the order of the numbers in the labels; the ``categories`` of a JSON
    file ``annotations`` give numbers of their own. Without either, labels have names, and all
    shards are read once to collect them. Raises UserError and OutageError.
    """
    shards = expand_shards(pattern)
    names, ids = _categories(annotations) if annotations else (_numbered(classes or []), None)
    images = _Images(shards, LabelReader(names, box_format))
    if classes is not None:
        ids = None
    elif names:
        classes = list(dict.fromkeys(name for _, name in names))
    return Source(
        kind="webdataset",
        name=_name(shards),
        classes=_collect_classes(images, pattern) if classes is None else classes,
        images=images,
        total=0,  # known when the last shard has been listed
        category_ids=ids,
        boxes_are="upright" if images.reader.kind == "txt" else None,  # as in YOLO
    )


def _name(shards: Sequence[str]) -> str:
    """Return a name for the data set: that of the folder of its first shard."""
    path = shards[0] if "://" in shards[0] else str(Path(shards[0]).absolute())
    return path.rpartition("/")[0].rpartition("/")[2] or "webdataset"


def _numbered(classes: Sequence[str]) -> Names:
    return tuple((str(number), name) for number, name in enumerate(classes))


def _categories(path: Path) -> tuple[Names, list[int] | None]:
    """Return the names of the categories in a JSON by id, and the id of each class."""
    try:
        tree = json.loads(open_file(path, "--annotations"))
        rows = tree.get("categories", []) if isinstance(tree, dict) else []
        names = {int(str(read_id(row["id"]))): str(row["name"]).strip() for row in rows}
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError):
        names = {}
    if not names or "" in names.values():
        raise UserError(
            f"--annotations {path}: no list of categories, each with an id (a number) and a name"
        )
    first: dict[str, int] = {}
    for number in sorted(names):
        first.setdefault(names[number], number)
    return tuple((str(number), names[number]) for number in sorted(names)), list(first.values())


def _collect_classes(images: _Images, shown: str) -> list[str]:
    """Return the sorted names of all classes in the labels. Raises UserError if they have none."""
    found: set[str] = set()
    first: Problem | None = None
    faults = 0
    progress = Progress("collecting class names")
    for image in images:
        record = image.read_record()
        found |= {item.name for item in record.objects}
        for problem in record.problems:
            if problem.kind in ("box dropped", "image skipped"):
                first, faults = first or problem, faults + 1
        progress.advance()
    progress.finish()
    if not found and first:
        raise UserError(
            f"--shards {shown}: no object can be read; {counted(faults, 'problem')}, the first: "
            f"{first}"
        )
    return sorted(found)


class _Images:
    """The images of all shards, which are listed one at a time; each iteration lists them again.

    The first remote shards, up to `KEPT_BYTES` and half of the free space, stay on disk between
    iterations.
    """

    def __init__(self, shards: list[str], reader: LabelReader) -> None:
        self._shards = list(zip(shards, shard_names(shards), strict=True))
        self._tars: dict[str, FetchedTar] = {}
        self._kept_bytes = 0
        self.reader = reader
        for number, (url, name) in enumerate(self._shards):
            shard = self._list(url, name)
            if shard.samples or number == len(shards) - 1:
                reader.choose(shard, url)
                break

    def __iter__(self) -> Iterator[SourceImage]:
        for url, name in self._shards:
            shard = self._list(url, name)
            for at, problem in enumerate(shard.problems):
                record = Record(f"{name} {at}", problem.file, None, name, problems=[problem])
                yield ParsedImage(record)
            for sample in shard.samples:
                yield self.reader.image(name, sample)
            del shard  # or its tar would stay on disk while the next one is fetched

    def _list(self, url: str, name: str) -> ListedShard:
        shard = list_shard(url, name, self._tars.get(url))
        if shard.tar and url not in self._tars:
            size = shard.tar.path().stat().st_size
            free = shutil.disk_usage(shard.tar.path().parent).free
            if self._kept_bytes + size <= min(KEPT_BYTES, self._kept_bytes + free // 2):
                self._tars[url] = shard.tar
                self._kept_bytes += size
        return shard
