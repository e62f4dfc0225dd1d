"""Published weights by URL: downloaded once, checked against their sha256, kept by it."""

from __future__ import annotations

import http.client
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.storage.cache_dir import user_cache
from pipeline.storage.http_client import AnswerError, TooLargeError, copy_file, file_sha256
from pipeline.storage.redact import mask

MAX_BYTES = 4 * 2**30
ATTEMPTS, WAIT_SECONDS = 3, 1.0


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


def _fetch(url: str, sha256: str, path: Path, max_bytes: int) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
        try:
            found = _try_to_copy(url, Path(draft.name), max_bytes)
            if found != sha256:
                raise UserError(
                    f"{mask(url)} has sha256 {found}, not the expected {sha256}; it was not used"
                )
            os.replace(draft.name, path)
        finally:
            Path(draft.name).unlink(missing_ok=True)


def _try_to_copy(url: str, draft: Path, max_bytes: int) -> str:
    """Copy the URL's content, again after a failure that may pass; returns its sha256."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return copy_file(url, draft, max_bytes)
        except TooLargeError:
            raise UserError(f"{mask(url)} is larger than the limit of {max_bytes} bytes") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            refused = isinstance(error, AnswerError) and error.status < 500
            final = refused or isinstance(error, ValueError | FileNotFoundError)
            if final or attempt == ATTEMPTS:
                raise UserError(f"{mask(url)} cannot be downloaded: {mask(str(error))}") from None
            time.sleep(WAIT_SECONDS * attempt)
    raise AssertionError("the last attempt returns or raises")
