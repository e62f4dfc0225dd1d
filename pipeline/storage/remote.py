"""Files under a URL prefix (http, https, s3 and whatever else fsspec opens), fetched with retries.

Credentials come from the environment, as each client reads it, and from neither addresses nor the
configuration: $AWS_ACCESS_KEY_ID and its kind for s3, ``$FSSPEC_<PROTOCOL>`` with JSON of options
for any protocol.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.storage.download import transfer

RETRIES = 8  # an outage of 45 s at least is waited out
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before the first retry, and at most
SMALL_FILE = 2**30
_HERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_AGAIN = (408, 425, 429)  # answers of the 400s that may differ the next time

log = logging.getLogger(__name__)


class Remote:
    """A folder somewhere else. Holds no connection, so it may be pickled and forked.

    ``retries`` is how often a transfer is tried again, after 0.5 s, 1 s, 2 s, ... up to 30 s.
    """

    def __init__(self, uri: str, retries: int = RETRIES) -> None:
        self.uri, self.retries = check_uri(uri).rstrip("/"), retries

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError, or UserError if it cannot be had."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            self._retried(name, lambda: self._transfer(name, path, SMALL_FILE))
            return path.read_bytes()

    def fetch(self, name: str, to: Path, size: int | None = None, sha256: str = "") -> None:
        """Write a file to ``to`` and check its size and sha256 where they are given.

        Raises FileNotFoundError, or UserError if it cannot be had as it should be.
        """

        def attempt() -> None:
            found = self._transfer(name, to, size)
            got = to.stat().st_size
            if size is not None and got != size:
                raise OSError(f"{got} bytes came, the manifest says {size}")
            if sha256 and found != sha256:
                raise OSError(
                    f"its sha256 is {found[:12]}..., the manifest says {sha256[:12]}...: it was "
                    "damaged, or changed after the manifest was written"
                )

        self._retried(name, attempt)

    def _transfer(self, name: str, to: Path, most: int | None) -> str:
        try:
            return transfer(f"{self.uri}/{name}", to, most)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.uri}: cannot be read: {_line(error)}") from None
        except OSError as error:
            if error.errno in _HERE:
                raise UserError(f"{to.parent}: {error.strerror}; it cannot take {name}") from None
            raise

    def _retried(self, name: str, attempt: Callable[[], object]) -> None:
        for number in range(self.retries + 1):
            try:
                attempt()
                return
            except (UserError, FileNotFoundError):
                raise
            except Exception as error:  # each protocol has its own kinds
                if _is_final(error) or number == self.retries:
                    hint = "; set $AWS_ACCESS_KEY_ID and its kind" if _is_nameless(error) else ""
                    tries = f" ({number + 1} attempts)" if number else ""
                    raise UserError(f"{self.uri}/{name}: {_line(error)}{hint}{tries}") from None
                # Spread, or all processes of a cluster would come back at the same moment.
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2**number) * random.uniform(0.5, 1.0)
                log.warning(
                    "%s/%s: %s; trying again in %.1f s", self.uri, name, _line(error), delay
                )
                time.sleep(delay)


def is_remote(uri: str | Path) -> bool:
    """Whether a shard set's address is anything but a local folder."""
    return "://" in str(uri) and not str(uri).startswith("file://")


def check_uri(uri: str) -> str:
    """The address itself; raises UserError if it holds secrets or is no plain prefix."""
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise UserError(
            f"{parts.scheme}://...@{parts.hostname}{parts.path}: credentials do not belong in an "
            "address; give them by the environment"
        )
    if parts.query or parts.fragment or "::" in uri:
        raise UserError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: a shard set is a plain prefix of files, "
            "without ?, # or ::"
        )
    return uri


def _is_final(error: Exception) -> bool:
    """Whether trying again would only repeat it."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _AGAIN
    return _is_nameless(error) or isinstance(
        error, PermissionError | NotImplementedError | ValueError
    )


def _is_nameless(error: Exception) -> bool:
    # By name, so that botocore is loaded for s3 alone.
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")


def _line(error: Exception) -> str:
    """What went wrong, in one line without secrets of a signed address."""
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    text = f"status {status} {message}" if isinstance(status, int) else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return re.sub(r"\?\S+", "?...", text)[:300]
