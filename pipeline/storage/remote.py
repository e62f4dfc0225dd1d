"""Files below a URL prefix (http, https, s3, all that fsspec opens), downloaded with retries."""

from __future__ import annotations

import errno
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pipeline.errors import OutageError, UserError
from pipeline.storage.download import download_file
from pipeline.storage.http_client import TooLargeError
from pipeline.storage.redact import error_line

RETRIES = 8  # outlast an outage of at least 45 s
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.5, 30.0
MAX_SMALL_FILE_BYTES = 2**30
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_TRANSIENT_STATUSES = (408, 425, 429)  # of the 400s, which are final otherwise
# Set where a service gives out credentials; so does that of a virtual machine of this vendor.
_CREDENTIALS_SERVICES = (
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
)
_VENDOR_FILE, _METADATA_VENDOR = Path("/sys/class/dmi/id/sys_vendor"), "Amazon EC2"

T = TypeVar("T")
log = logging.getLogger(__name__)
# Of the operating system: trainings seed the module's generator, identically on all ranks.
_jitter = random.SystemRandom()


class _DamagedFileError(OSError):
    """A file is not the one that the manifest lists. It is fetched again, in case it was cut."""


class Remote:
    """A folder that is not on this machine. It holds no connection: pickle or fork it freely.

    Failed transfers are retried up to ``retries`` times, after 0.5 s, 1 s, 2 s, ... up to 30 s.
    """

    def __init__(self, uri: str, retries: int = RETRIES) -> None:
        self.uri, self.retries = check_uri(uri).rstrip("/"), retries

    def read(self, name: str) -> bytes:
        """Return the content of a small file. Raises as `fetch`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            self._with_retries(name, lambda: self._download(name, path, MAX_SMALL_FILE_BYTES))
            return path.read_bytes()

    def fetch(
        self,
        name: str,
        to: Path,
        size: int | None = None,
        sha256: str = "",
        max_bytes: int | None = None,
    ) -> str:
        """Write a file to ``to`` and return its sha256, in hex.

        Its size and sha256 are checked if they are given. Raises FileNotFoundError if it does not
        exist, UserError if it could not be fetched intact or exceeds ``max_bytes``, OutageError if
        the store does not respond.
        """

        def attempt() -> str:
            found = self._download(name, to, max_bytes if size is None else size)
            received = to.stat().st_size
            if size is not None and received != size:
                raise _DamagedFileError(f"received {received} bytes, the manifest says {size}")
            if sha256 and found != sha256:
                raise _DamagedFileError(
                    f"its sha256 is {found[:12]}..., the manifest says {sha256[:12]}...: it is "
                    "damaged, or was changed after the manifest was written"
                )
            return found

        return self._with_retries(name, attempt)

    def _download(self, name: str, to: Path, max_bytes: int | None) -> str:
        try:
            return download_file(f"{self.uri}/{name}", to, max_bytes)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.uri}: cannot be read: {error_line(error)}") from None
        except OSError as error:
            if error.errno in _LOCAL_ERRORS:
                raise UserError(f"{to.parent}: {error.strerror}; cannot write {name}") from None
            raise

    def _with_retries(self, name: str, attempt: Callable[[], T]) -> T:
        return with_retries(attempt, f"{self.uri}/{name}", self.retries)


def with_retries(attempt: Callable[[], T], subject: str, retries: int) -> T:
    """Return what ``attempt`` returns; after a transient failure call it again, after a delay.

    Passes on UserError and FileNotFoundError. Begins other errors with the ``subject``: UserError
    for a failure that another attempt would repeat, OutageError for one that remains after all
    ``retries``.
    """
    for number in range(retries + 1):
        try:
            return attempt()
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:  # each client has its own types
            if (final := _is_final(error)) or number == retries:
                hint = "; set $AWS_ACCESS_KEY_ID and similar" if _lacks_credentials(error) else ""
                attempts = f" ({number + 1} attempts)" if number else ""
                mistake = final or isinstance(error, _DamagedFileError | TooLargeError)
                kind = UserError if mistake else OutageError
                raise kind(f"{subject}: {_reason(error)}{hint}{attempts}") from None
            # At random, or all processes of a cluster would come back at the same moment.
            delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**number)
            delay *= _jitter.uniform(0.5, 1.0)
            log.warning("%s: %s; retrying in %.1f s", subject, _reason(error), delay)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def is_remote(uri: str | Path) -> bool:
    """Return whether a shard set is anywhere but in a local folder."""
    return "://" in str(uri) and not str(uri).startswith("file://")


def check_uri(uri: str) -> str:
    """Return the URI. Raises UserError if it contains secrets or is not a plain prefix."""
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise UserError(
            f"{parts.scheme}://...@{parts.hostname}{parts.path}: credentials do not belong in a "
            "URI; set them in the environment"
        )
    if parts.query or parts.fragment or "::" in uri:
        raise UserError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: a shard set is a plain prefix of files, "
            "without ?, # or ::"
        )
    return uri


def _is_final(error: Exception) -> bool:
    """Return whether another attempt would fail the same way."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _TRANSIENT_STATUSES
    if isinstance(error, PermissionError | NotImplementedError | ValueError):
        return True
    if _lacks_credentials(error):
        return not _credentials_service_expected()
    return getattr(error, "errno", None) in _LOCAL_ERRORS


def _lacks_credentials(error: Exception) -> bool:
    # By name, so that botocore is imported for s3 only.
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")


def _credentials_service_expected() -> bool:
    """Return whether credentials of this machine come from a service, such as instance metadata.

    botocore reports a service that did not respond as missing credentials, like on a machine
    without any.
    """
    if any(os.environ.get(name) for name in _CREDENTIALS_SERVICES):
        return True
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    try:
        return _VENDOR_FILE.read_text().strip() == _METADATA_VENDOR
    except OSError:
        return False


def _reason(error: Exception) -> str:
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    return error_line(f"status {status} {message}" if isinstance(status, int) else error)
