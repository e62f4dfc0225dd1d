"""The manifest of a shard set: its shards in order, its classes, and the problems of its source.

It is written last and atomically: a folder without a manifest is not a shard set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlparse

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    WrapValidator,
    field_validator,
    model_validator,
)

from pipeline.data.shards.shard_table import Shard, ShardParser, ShardTable
from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.durable import write_durably
from pipeline.storage.remote import Remote, is_remote

MANIFEST = "manifest.json"
# Kinds of problems as format 1 names them, and their names now.
OLD_PROBLEM_KINDS = {"mended": "repaired", "member refused": "member skipped"}


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


def _accept_table(value: Any, validate: Any) -> Any:
    return value if isinstance(value, ShardTable) else validate(value)


Shards = Annotated[
    Sequence[Shard],
    WrapValidator(_accept_table),
    PlainSerializer(lambda shards: [shard.model_dump() for shard in shards]),
]


class Manifest(Document):
    """A shard set. Labels index ``classes``; ``fingerprint`` identifies the source's content.

    Format 1 has older names for two kinds of problems, which `Problem` translates.
    """

    FORMAT_VERSION: ClassVar[int] = 2

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

    def problem_counts(self) -> dict[str, int]:
        """Return the number of problems of each kind."""
        return dict(Counter(problem.kind for problem in self.problems))


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
    path = f"{str(uri).rstrip('/')}/{MANIFEST}"
    try:
        if is_remote(uri):
            data = Remote(str(uri), retries).read(MANIFEST)
        else:
            data = (local_folder(uri) / MANIFEST).read_bytes()
        content = json.loads(data, object_hook=parser)
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
    if "shards" in content:
        content["shards"] = parser.shards(content["shards"])
    try:
        manifest = Manifest.from_content(content, path)
    except DocumentError as error:
        raise UserError(f"not a manifest: {error}") from None
    if not manifest.samples:
        raise UserError(f"{uri}: the shard set has no samples; convert the data again")
    return manifest


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
