"""The manifest of a shard set: what is in it, in which order, and what went wrong making it.

It is written last and atomically, so a folder without one is not a data set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlparse

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)

from pipeline.data.shards.shard_table import Shard, ShardParser, ShardTable
from pipeline.errors import UserError
from pipeline.storage.durable import write_durably
from pipeline.storage.remote import Remote, is_remote

FORMAT_VERSION = 2
# Kinds of problems as manifests of format 1 name them, and the names they have now.
OLD_PROBLEM_KINDS = {"mended": "repaired", "member refused": "member skipped"}
MANIFEST = "manifest.json"


class Problem(BaseModel):
    """One fault of the source, and what was done about it.

    Near duplicates and leaks (a near duplicate in another split) are kept, and only reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    kind: Literal[
        "member skipped",
        "image skipped",
        "box dropped",
        "box clipped",
        "repaired",
        "near duplicate",
        "leak",
    ]
    reason: str

    @field_validator("kind", mode="before")
    @classmethod
    def _rename_old_kind(cls, kind: Any) -> Any:
        return OLD_PROBLEM_KINDS.get(kind, kind) if isinstance(kind, str) else kind

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.reason}"


def _kept(value: Any, validate: Any) -> Any:
    return value if isinstance(value, ShardTable) else validate(value)


Shards = Annotated[
    Sequence[Shard],
    WrapValidator(_kept),
    PlainSerializer(lambda shards: [shard.model_dump() for shard in shards]),
]


class Manifest(BaseModel):
    """A shard set. Labels index ``classes``; ``fingerprint`` stands for the source's content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
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
    problems: list[Problem]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.samples != int(self.counts.sum()):
            raise ValueError("samples is not the sum over the shards")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError("classes must be one or more different names")
        return self

    @property
    def counts(self) -> np.ndarray:
        """Samples of each shard (n,), int64."""
        if isinstance(self.shards, ShardTable):
            return self.shards.counts
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each shard (n,), int64."""
        if isinstance(self.shards, ShardTable):
            return self.shards.sizes
        return np.array([shard.bytes for shard in self.shards], dtype=np.int64)

    @cached_property
    def content_hash(self) -> str:
        """Stands for what training sees: shards in their order, and class names."""
        shards = self.shards
        hashes = shards.hashes if isinstance(shards, ShardTable) else (s.sha256 for s in shards)
        # One row after the other: a list of a million of them would take a gigabyte.
        content = hashlib.sha256(json.dumps(self.classes).encode())
        for digest, count in zip(hashes, self.counts.tolist(), strict=True):
            content.update(f"{digest} {count}\n".encode())
        return content.hexdigest()

    def problem_counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return dict(Counter(problem.kind for problem in self.problems))


def local_folder(uri: str | Path) -> Path:
    """The folder that a shard set's path or ``file://`` URI means."""
    parsed = urlparse(str(uri))
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(uri)


def load_manifest(uri: str | Path, retries: int = 3) -> Manifest:
    """Read the manifest of a shard set, in a folder or somewhere else.

    ``retries`` is how often reading it from elsewhere is tried again. Raises UserError if there is
    none that can be used, or the set has no samples.
    """
    parser = ShardParser()
    path = f"{str(uri).rstrip('/')}/{MANIFEST}"
    try:
        if is_remote(uri):
            data = Remote(str(uri), retries).read(MANIFEST)
        else:
            data = (local_folder(uri) / MANIFEST).read_bytes()
        tree = json.loads(data, object_hook=parser)
    except FileNotFoundError:
        raise UserError(
            f"{uri}: no {MANIFEST}, so no shard set; make one with python -m jobs.prepare"
        ) from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if isinstance(tree, dict) and "shards" in tree:
        tree["shards"] = parser.shards(tree["shards"])
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest known "
            "here; update this program or convert the data again"
        )
    if version == 1:
        tree["format_version"] = FORMAT_VERSION  # `Problem` renames the kinds
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: not a manifest: {where} {first['msg']}".replace("  ", " ")
        ) from None
    if not manifest.samples:
        raise UserError(f"{uri}: the shard set has no samples; convert the data again")
    return manifest


def require_classes(uri: str, manifest: Manifest, classes: Sequence[str], of: str) -> None:
    """Raise UserError unless the set has exactly these classes, in this order; names both."""
    if manifest.classes != list(classes):
        raise UserError(
            f"{uri} has the classes {', '.join(manifest.classes)}; {of} has "
            f"{', '.join(classes)}: they must be the same, in the same order "
            "(python -m jobs.prepare --classes-from SHARDSET)"
        )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it so that a crash leaves either no manifest or a whole one."""
    text = json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False) + "\n"
    write_durably(folder / MANIFEST, text.encode())
