"""Published weights by URL: downloaded once, checked against their sha256, and cached."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import OutageError, UserError
from pipeline.storage.cache_dir import user_cache
from pipeline.storage.checksum import file_sha256
from pipeline.storage.download import download_file
from pipeline.storage.durable import open_durably
from pipeline.storage.http_client import TooLargeError
from pipeline.storage.lock import try_lock_file
from pipeline.storage.redact import mask
from pipeline.storage.remote import with_retries

MAX_BYTES = 4 * 2**30
RETRIES = 3
TAG_DIGITS = 8  # of a sha256 in the name of a file


def weights_cache() -> Path:
    """Return the folder of downloaded weights on this machine."""
    return user_cache("weights")


def download(
    url: str,
    sha256: str,
    folder: Path | None = None,
    max_bytes: int = MAX_BYTES,
    name: str | None = None,
) -> Path:
    """Return the path of a URL's content with this sha256, downloaded if the cache lacks it.

    In the cache it has the ``name``, by default that of the URL if the start of the sha256 is in it
    (``resnet18-f37072fd.pth``), else its sha256 and the suffix of the URL, which are also found.
    Processes of one machine download it once. Raises UserError if it does not exist, is larger than
    ``max_bytes``, or has another sha256, and OutageError if the server does not respond, with the
    place for a file from elsewhere; nothing is cached then.
    """
    folder, sha256 = folder or weights_cache(), sha256.lower()
    given = Path(urlsplit(url).path)
    hashed = folder / f"{sha256}{given.suffix}"
    path = folder / (name or (given.name if _has_tag(given.stem, sha256) else hashed.name))
    try:
        for known in (path, hashed):
            if _is_file_of(known, sha256):
                return known  # also in a cache that cannot be written to
        folder.mkdir(parents=True, exist_ok=True)
        with try_lock_file(path.with_name(f"{path.name}.lock")):
            if not _is_file_of(path, sha256):
                _fetch(url, sha256, path, max_bytes)
    except OSError as error:
        raise UserError(f"{folder}: weights cannot be cached there: {error}") from None
    return path


def _has_tag(stem: str, sha256: str) -> bool:
    """Return whether a name ends with the start of the hash, as torchvision's files have it."""
    tag = stem.rpartition("-")[2]
    return len(tag) >= TAG_DIGITS and sha256.startswith(tag)


def _is_file_of(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


class _Refused(UserError):
    """The file is not one that may be used."""


def _fetch(url: str, sha256: str, path: Path, max_bytes: int) -> None:
    def attempt() -> str:
        try:
            # Any recipe may name any host, which must not be sent the credentials of the data.
            return download_file(url, Path(draft.name), max_bytes, anonymous=True)
        except TooLargeError:
            raise _Refused(f"{mask(url)} is larger than the limit of {max_bytes} bytes") from None

    failure = f"{mask(url)} cannot be downloaded"
    place = f"without internet access, put {path.name} with sha256 {sha256} into {path.parent}"
    with open_durably(path, mode=0o600) as draft:
        try:
            found = with_retries(attempt, failure, RETRIES)
        except FileNotFoundError as error:
            raise UserError(f"{failure}: {error}; {place}") from None
        except _Refused as error:
            raise UserError(str(error)) from None
        except (OutageError, UserError) as error:
            raise type(error)(f"{error}; {place}") from None
        if found != sha256:
            raise UserError(
                f"{mask(url)} has sha256 {found}, not the expected {sha256}; it was not used"
            )
