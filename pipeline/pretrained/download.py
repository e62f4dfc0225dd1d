"""Published weights by URL: downloaded once, checked against their sha256, kept by it."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.tracking import mask
from pipeline.user_cache import user_cache

MAX_BYTES = 4 * 2**30
ATTEMPTS, WAIT_SECONDS, TIMEOUT_SECONDS = 3, 1.0, 30.0
_BLOCK = 2**20


def weights_cache() -> Path:
    """Where downloaded weights are kept on this machine."""
    return user_cache("weights")


def download(url: str, sha256: str, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> Path:
    """The file at a URL whose content has this sha256, from the cache or else from the network.

    Processes of one machine download a file once. Raises UserError if it cannot be had, is larger
    than the limit or is another file; nothing is kept then.
    """
    folder = folder or weights_cache()
    path = folder / f"{sha256.lower()}{Path(urlsplit(url).path).suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not (path.is_file() and file_sha256(path) == sha256.lower()):
                _fetch(url, sha256.lower(), path, max_bytes)
    except OSError as error:
        raise UserError(f"{folder}: weights cannot be kept there: {error}") from None
    return path


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, sha256: str, path: Path, max_bytes: int) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
        try:
            found = _try_to_copy(url, draft, max_bytes)
            if found != sha256:
                raise UserError(
                    f"{mask(url)} has sha256 {found}, not the expected {sha256}; it was not used"
                )
            os.replace(draft.name, path)
        finally:
            Path(draft.name).unlink(missing_ok=True)


def _try_to_copy(url: str, draft: tempfile._TemporaryFileWrapper[bytes], max_bytes: int) -> str:
    """Copy the URL's content, again after a failure that may pass; returns its sha256."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            draft.seek(0)
            draft.truncate()
            return _copy(url, draft, max_bytes)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or isinstance(error, ValueError) or attempt == ATTEMPTS:
                raise UserError(f"{mask(url)} cannot be downloaded: {error}") from None
            time.sleep(WAIT_SECONDS * attempt)
    raise AssertionError("the last attempt returns or raises")


def _copy(url: str, draft: tempfile._TemporaryFileWrapper[bytes], max_bytes: int) -> str:
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        length = int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(_BLOCK):
            size += len(block)
            if max(size, length) > max_bytes:
                raise UserError(f"{mask(url)} is larger than the limit of {max_bytes} bytes")
            digest.update(block)
            draft.write(block)
    if size < length:
        raise http.client.IncompleteRead(b"", length - size)
    draft.flush()
    return digest.hexdigest()
