"""The shards of a manifest as columns: a million of them take 80 MB instead of a gigabyte.

The manifest stays plain JSON. While it is parsed, each shard becomes a row of the columns at its
closing brace, and an object only when it is accessed.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

NAME, SHA256 = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$", "^[0-9a-f]{64}$"
_match_name, _match_sha256 = re.compile(NAME).fullmatch, re.compile(SHA256).fullmatch
IMAGE_CLASSES = "image-classes.bin"
_KEYS = {"name", "samples", "bytes", "sha256"}
_values = itemgetter("name", "samples", "bytes", "sha256")
_INT64_LIMIT = 2**63


class Shard(BaseModel):
    """One tar file; its index of byte offsets is beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=SHA256)


class ImageClassesFile(BaseModel):
    """The file beside a manifest that has the classes of each image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=SHA256)


class ShardTable(Sequence[Shard]):
    """A sequence of `Shard` that is stored as columns and grows by ``add``."""

    def __init__(self) -> None:
        self._names, self._ends = bytearray(), array("q")
        self._samples, self._bytes, self._hashes = array("q"), array("q"), bytearray()

    def add(self, row: Mapping[str, Any]) -> bool:
        """Append a shard if it is valid; return whether it was."""
        name, samples, size, digest = _values(row)
        if not (
            type(samples) is type(size) is int
            and 0 < samples < _INT64_LIMIT
            and 0 < size < _INT64_LIMIT
            and type(name) is type(digest) is str
            # fullmatch, as match would accept a trailing line break.
            and _match_name(name)
            and _match_sha256(digest)
        ):
            return False
        self._names += name.encode()
        self._ends.append(len(self._names))
        self._samples.append(samples)
        self._bytes.append(size)
        self._hashes += bytes.fromhex(digest)
        return True

    @property
    def counts(self) -> np.ndarray:
        """Return the samples of each shard (n,), int64."""
        return np.array(self._samples, dtype=np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """Return the bytes of each shard (n,), int64."""
        return np.array(self._bytes, dtype=np.int64)

    @property
    def hashes(self) -> Iterator[str]:
        """Return the sha256 of each shard."""
        return (self._hashes[at : at + 32].hex() for at in range(0, len(self._hashes), 32))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> list[Shard]: ...
    def __getitem__(self, index: int | slice) -> Shard | list[Shard]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return Shard.model_construct(
            name=self._names[self._ends[i - 1] if i else 0 : self._ends[i]].decode(),
            samples=self._samples[i],
            bytes=self._bytes[i],
            sha256=self._hashes[32 * i : 32 * i + 32].hex(),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class ShardParser:
    """Collect the shards of a manifest: the ``object_hook`` with which ``json.loads`` reads it."""

    def __init__(self) -> None:
        self.table = ShardTable()

    def __call__(self, tree: dict[str, Any]) -> Any:
        """Add a valid shard to the table and return the parser in its place; else return it."""
        return self if tree.keys() == _KEYS and self.table.add(tree) else tree

    def shards(self, rows: Any) -> Any:
        """Return the table, or the rows as they are for a validator to report what is wrong."""
        if not isinstance(rows, list):
            return rows
        if len(rows) == len(self.table) and all(row is self for row in rows):
            return self.table
        valid = iter(self.table)
        return [next(valid) if row is self else row for row in rows]
