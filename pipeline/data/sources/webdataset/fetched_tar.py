"""Remote tars, fetched whole to temporary files that exist as long as something refers to them.

Images refer to their tar. So a conversion, which holds the images of one shard at a time, keeps few
tars on disk, and one that lists all images first keeps all of them.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.sources.archives import Member
from pipeline.errors import OutageError, UserError
from pipeline.storage.remote import Remote

MAX_TAR_BYTES = 256 * 2**30
RECENT_TARS = 2  # kept by a worker process, whose next images are usually in the same tars


class FetchedTar:
    """A tar at a URL. Its ``sha256`` is known once it has been fetched, which is done at once.

    Another process that receives the object fetches the tar again, when it is read, and checks that
    it is the same.
    """

    def __init__(self, url: str, sha256: str = "") -> None:
        self.url, self.sha256 = url, sha256
        self._path: Path | None = None
        if not sha256:
            self.sha256 = self._fetch()

    def __repr__(self) -> str:
        return f"FetchedTar({self.url!r}, {self.sha256!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _known_tar, (self.url, self.sha256)

    def path(self) -> Path:
        """Return the local path; fetch the tar if needed. Raises OutageError if that fails."""
        if self._path is None:
            try:
                found = self._fetch()
            except UserError as error:  # it could be fetched before
                raise OutageError(str(error)) from None
            if found != self.sha256:
                raise OutageError(f"{self.url}: changed during the conversion; start it again")
        assert self._path is not None
        return self._path

    def _fetch(self) -> str:
        folder, _, name = self.url.rpartition("/")
        local = Path(tempfile.mkdtemp(prefix="webdataset-"))
        weakref.finalize(self, shutil.rmtree, local, True)
        try:
            sha256 = Remote(folder).fetch(name, local / "shard.tar", max_bytes=MAX_TAR_BYTES)
        except FileNotFoundError:
            raise UserError(f"{self.url}: not found; name shards that exist") from None
        self._path = local / "shard.tar"
        return sha256


_recent: deque[FetchedTar] = deque(maxlen=RECENT_TARS)


def _known_tar(url: str, sha256: str) -> FetchedTar:
    """Return the tar that this process has, or a new one that is fetched when it is read."""
    for tar in _recent:
        if (tar.url, tar.sha256) == (url, sha256):
            return tar
    _recent.append(FetchedTar(url, sha256))
    return _recent[-1]


@dataclass(frozen=True)
class FetchedMember:
    """One file in a fetched tar; ``start`` is the offset of its data."""

    tar: FetchedTar
    start: int
    size: int

    def read(self, limit: int) -> bytes:
        """Return all bytes. Raises OSError, ValueError if they are over the limit, OutageError."""
        return self._member().read(limit)

    def read_start(self, limit: int) -> bytes:
        """Return the first ``limit`` bytes. Raises OSError, ValueError or OutageError."""
        return self._member().read_start(limit)

    def _member(self) -> Member:
        return Member(str(self.tar.path()), 0, self.start, self.size)
