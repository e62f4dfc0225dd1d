"""The manifest of a shard set: what is in it, in which order, and what went wrong making it.

It is written last and atomically, so a folder without one is not a data set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.data.remote import Remote, is_remote
from pipeline.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class Problem(BaseModel):
    """One thing found wrong in the source, and what was done about it.

    Near duplicates and leaks (a near duplicate in another split) are kept, and only told.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    kind: Literal[
        "member refused",
        "image skipped",
        "box dropped",
        "box clipped",
        "mended",
        "near duplicate",
        "leak",
    ]
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.reason}"


class Shard(BaseModel):
    """One tar file; its index of byte offsets lies beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$")
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


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
    shards: list[Shard]
    problems: list[Problem]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.samples != sum(shard.samples for shard in self.shards):
            raise ValueError("samples is not the sum over the shards")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError("classes must be one or more different names")
        return self

    @cached_property
    def content_hash(self) -> str:
        """Stands for what training sees: shards in their order, and class names."""
        rows = [self.classes, [(shard.sha256, shard.samples) for shard in self.shards]]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def problem_counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return dict(Counter(problem.kind for problem in self.problems))


def local_folder(uri: str | Path) -> Path:
    """The folder that a shard set's path or ``file://`` URI means."""
    parsed = urlparse(str(uri))
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else Path(uri)


def load_manifest(uri: str | Path) -> Manifest:
    """Read the manifest of a shard set, in a folder or somewhere else.

    Raises UserError if there is none that can be used.
    """
    path = f"{str(uri).rstrip('/')}/{MANIFEST}"
    try:
        if is_remote(uri):
            data = Remote(str(uri), retries=3).read(MANIFEST)
        else:
            data = (local_folder(uri) / MANIFEST).read_bytes()
        tree = json.loads(data)
    except FileNotFoundError:
        raise UserError(
            f"{uri}: no {MANIFEST}, so no shard set; make one with python -m jobs.prepare"
        ) from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest known "
            "here; update this program or convert the data again"
        )
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: not a manifest: {where} {first['msg']}".replace("  ", " ")
        ) from None


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
    partial = folder / f".{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
