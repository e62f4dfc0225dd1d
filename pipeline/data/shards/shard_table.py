"""The shards of a manifest as columns: a million of them in 80 MB instead of a gigabyte.

The manifest stays plain JSON. While it is parsed, every shard becomes a row of the columns as soon
as its closing brace is read, and an object only when somebody asks for it.
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
_name, _sha256 = re.compile(NAME).fullmatch, re.compile(SHA256).fullmatch
_KEYS = {"name", "samples", "bytes", "sha256"}
_values = itemgetter("name", "samples", "bytes", "sha256")
_MOST = 2**63


class Shard(BaseModel):
    """One tar file; its index of byte offsets lies beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=SHA256)


class ShardTable(Sequence[Shard]):
    """Reads like a list of `Shard`; grows by ``add``."""

    def __init__(self) -> None:
        self._names, self._ends = bytearray(), array("q")
        self._samples, self._bytes, self._hashes = array("q"), array("q"), bytearray()

    def add(self, row: Mapping[str, Any]) -> bool:
        """Append a shard if it is a sound one; whether it was."""
        name, samples, size, digest = _values(row)
        if not (
            type(samples) is type(size) is int
            and 0 < samples < _MOST
            and 0 < size < _MOST
            and type(name) is type(digest) is str
            # Not match: a trailing line break would pass for the end.
            and _name(name)
            and _sha256(digest)
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
        """Samples of each shard (n,), int64."""
        return np.array(self._samples, dtype=np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each shard (n,), int64."""
        return np.array(self._bytes, dtype=np.int64)

    @property
    def hashes(self) -> Iterator[str]:
        """sha256 of each shard."""
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
    """Collects the shards of a manifest while ``json.loads(..., object_hook=parser)`` reads it."""

    def __init__(self) -> None:
        self.table = ShardTable()

    def __call__(self, tree: dict[str, Any]) -> Any:
        """A row of the table, or the object itself if it is no sound shard."""
        return self if tree.keys() == _KEYS and self.table.add(tree) else tree

    def shards(self, rows: Any) -> Any:
        """The table, or rows for a validator to say what is wrong with them."""
        if not isinstance(rows, list):
            return rows
        if len(rows) == len(self.table) and all(row is self for row in rows):
            return self.table
        sound = iter(self.table)
        return [next(sound) if row is self else row for row in rows]
