"""The hashes and file names of the images of a set, on disk: a hundred million take 5 GB."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

HASH_BYTES = 16
BLOCK_ROWS = 2**20


class HashTable(Protocol):
    """Hashes of images, in the order of the images."""

    def __len__(self) -> int:
        """Return the number of hashes."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the hashes in order, as arrays (n,2) of uint64."""


class HashList:
    """Hashes in memory."""

    def __init__(self, hashes: Iterable[bytes]) -> None:
        self._data = b"".join(hashes)

    def __len__(self) -> int:
        return len(self._data) // HASH_BYTES

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all hashes in one array (n,2) of uint64."""
        yield np.frombuffer(self._data, "<u8").reshape(-1, 2)


class ImageHashes:
    """The hashes of the images of a set, and the file names to report them by.

    They are in unnamed files in ``folder``, by default the folder for temporary files, which
    disappear with the object. Methods raise OSError where the disk is full.
    """

    def __init__(self, set_name: str, folder: Path | None = None) -> None:
        self.set_name = set_name
        self._hashes, self._names, self._ends = (
            tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
            for _ in range(3)
        )
        self._count = self._end = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, file_names: Sequence[str], hashes: Sequence[bytes]) -> None:
        """Append images."""
        names = [name.encode("utf-8", "surrogatepass") for name in file_names]
        ends = self._end + np.cumsum([len(name) for name in names], dtype="<i8")
        self._hashes.write(b"".join(hashes))
        self._names.write(b"".join(names))
        self._ends.write(ends.tobytes())
        self._count, self._end = self._count + len(names), self._end + sum(map(len, names))

    def file_name(self, index: int) -> str:
        """Return the file name of an image."""
        self._ends.seek(8 * max(0, index - 1))
        start, end = (0, *np.frombuffer(self._ends.read(16 if index else 8), "<i8").tolist())[-2:]
        self._names.seek(start)
        return self._names.read(end - start).decode("utf-8", "surrogatepass")

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the hashes in order, as arrays (n,2) of uint64."""
        self._hashes.seek(0)
        while data := self._hashes.read(HASH_BYTES * BLOCK_ROWS):
            yield np.frombuffer(data, "<u8").reshape(-1, 2)

    def close(self) -> None:
        """Delete the files."""
        for file in (self._hashes, self._names, self._ends):
            file.close()
