"""The manifest of a shard set: its shards in order, its classes, and its counts.

It is written last and atomically: a folder without a manifest is not a shard set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlparse

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WrapValidator,
    model_validator,
)

from pipeline.data.shards.problems import (
    PROBLEMS,
    Problem,
    ProblemKind,
    parse_problems,
    problem_kind,
)
from pipeline.data.shards.shard_table import ImageClassesFile, Shard, ShardParser, ShardTable
from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.durable import write_durably
from pipeline.storage.remote import Remote, is_remote

MANIFEST = "manifest.json"


def _accept_table(value: Any, validate: Any) -> Any:
    return value if isinstance(value, ShardTable) else validate(value)


Shards = Annotated[
    Sequence[Shard],
    WrapValidator(_accept_table),
    PlainSerializer(lambda shards: [shard.model_dump() for shard in shards]),
]


class Tiling(BaseModel):
    """How pictures were cut into tiles before they became samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=32, description="side of a tile, in pixels")
    overlap: float = Field(ge=0, le=0.9, description="of neighbouring tiles, as a part of the side")
    empty: Literal["all", "none"] = Field(
        default="all", description="which of the tiles without objects are kept"
    )


class Manifest(Document):
    """A shard set. Labels index ``classes``; ``fingerprint`` identifies the source's content.

    Format 4 has no classes of images. Format 3 has fewer kinds of problems and no counts of what is
    left out. Formats 1 and 2 have the list of problems in place of their counts, and format 1 has
    older names for two of their kinds.
    """

    FORMAT_VERSION: ClassVar[int] = 5

    name: str
    split: str
    source: str
    fingerprint: str
    classes: list[str]
    category_ids: list[int] | None = None
    samples: int
    samples_without_objects: int
    boxes: int
    boxes_per_class: dict[str, int]
    shards: Shards
    problem_counts: dict[ProblemKind, int]  # their list is beside the manifest
    lost_objects: int = 0  # because of these problems
    excluded_boxes: dict[str, int] = Field(default_factory=dict)  # of classes that were not chosen
    crowd_boxes: int = 0  # of the boxes: regions that training ignores
    renamed: dict[str, str] = Field(default_factory=dict)  # classes of the source, to new names
    tiling: Tiling | None = None  # None: samples are whole pictures
    image_classes: ImageClassesFile | None = None  # None before format 5

    @model_validator(mode="after")
    def _check_consistency(self) -> Manifest:
        if self.samples != int(self.counts.sum()):
            raise ValueError("samples is not the sum over the shards")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError("classes must be one or more different names")
        return self

    @property
    def counts(self) -> np.ndarray:
        """Return the samples of each shard (n,), int64."""
        if isinstance(self.shards, ShardTable):
            return self.shards.counts
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """Return the bytes of each shard (n,), int64."""
        if isinstance(self.shards, ShardTable):
            return self.shards.sizes
        return np.array([shard.bytes for shard in self.shards], dtype=np.int64)

    @property
    def countable_boxes(self) -> int:
        """Return the number of boxes that training learns and evaluation counts: not crowds."""
        return self.boxes - self.crowd_boxes

    @cached_property
    def content_hash(self) -> str:
        """Return a hash of everything that training reads: shards in order, and class names."""
        shards = self.shards
        hashes = shards.hashes if isinstance(shards, ShardTable) else (s.sha256 for s in shards)
        # Row by row: a list of a million rows would take a gigabyte.
        content = hashlib.sha256(json.dumps(self.classes).encode())
        for digest, count in zip(hashes, self.counts.tolist(), strict=True):
            content.update(f"{digest} {count}\n".encode())
        return content.hexdigest()

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Count the problems of an older manifest."""
        if version >= 3:
            return content
        rows = content.pop("problems", None)
        if not isinstance(rows, list):
            raise DocumentError(f"{MANIFEST}: no list of problems")
        kinds = [problem_kind(row) if isinstance(row, dict) else row for row in rows]
        for number, kind in enumerate(kinds):
            if not isinstance(kind, str):
                raise DocumentError(f"{MANIFEST}: problems.{number}: not a problem")
        return {**content, "problem_counts": dict(Counter(kinds))}


def local_folder(uri: str | Path) -> Path:
    """Return the folder of a shard set's path or ``file://`` URI."""
    parsed = urlparse(str(uri))
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(uri)


def load_manifest(uri: str | Path, retries: int = 3) -> Manifest:
    """Read the manifest of a shard set in a folder or at a URL, which is retried ``retries`` times.

    Raises UserError if there is no usable manifest, or the set has no samples, and OutageError if
    the store does not respond.
    """
    parser = ShardParser()

    def parse(tree: dict[str, Any]) -> Any:
        row = parser(tree)
        # Of the problems in an older manifest, only the kinds are kept in memory.
        return problem_kind(tree) or tree if row is tree else row

    content = _read_manifest(uri, retries, parse)
    path = f"{str(uri).rstrip('/')}/{MANIFEST}"
    if "shards" in content:
        content["shards"] = parser.shards(content["shards"])
    try:
        manifest = Manifest.from_content(content, path)
    except DocumentError as error:
        raise UserError(f"not a manifest: {error}") from None
    if not manifest.samples:
        raise UserError(f"{uri}: the shard set has no samples; convert the data again")
    return manifest


def read_problems(uri: str | Path, retries: int = 3) -> Iterator[Problem]:
    """Yield the problems met while the shard set in a folder or at a URL was converted.

    Raises UserError if their list cannot be read.
    """
    content = _read_manifest(uri, retries, lambda tree: tree)
    if "problems" in content:  # format 1 or 2
        yield from (Problem.model_validate(row) for row in content["problems"])
        return
    if not content.get("problem_counts"):
        return
    path = f"{str(uri).rstrip('/')}/{PROBLEMS}"
    with contextlib.ExitStack() as stack:
        try:
            local = local_folder(uri) / PROBLEMS
            if is_remote(uri):
                local = Path(stack.enter_context(tempfile.TemporaryDirectory())) / PROBLEMS
                Remote(str(uri), retries).fetch(PROBLEMS, local)
            lines = stack.enter_context(local.open("rb"))
        except FileNotFoundError:
            raise UserError(f"{path}: missing, but the manifest counts problems") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        yield from parse_problems(lines, path)


def _read_manifest(
    uri: str | Path, retries: int, parse: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    """Return the content of a manifest, with each JSON object as ``parse`` returns it."""
    path = f"{str(uri).rstrip('/')}/{MANIFEST}"
    try:
        if is_remote(uri):
            data = Remote(str(uri), retries).read(MANIFEST)
        else:
            data = (local_folder(uri) / MANIFEST).read_bytes()
        content = json.loads(data, object_hook=parse)
    except FileNotFoundError:
        raise UserError(
            f"{uri}: not a shard set ({MANIFEST} not found); make one with python -m jobs.prepare"
        ) from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"not a manifest: {path}: expected a JSON object")
    return content


def require_classes(uri: str, manifest: Manifest, classes: Sequence[str], owner: str) -> None:
    """Raise UserError unless the set has exactly the classes of ``owner``, in the same order."""
    if manifest.classes != list(classes):
        raise UserError(
            f"{uri} has the classes {', '.join(manifest.classes)}; {owner} has "
            f"{', '.join(classes)}: they must be the same, in the same order "
            "(python -m jobs.prepare --classes-from SHARDSET)"
        )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest: after a crash there is a complete one or none."""
    text = json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False) + "\n"
    write_durably(folder / MANIFEST, text.encode())
