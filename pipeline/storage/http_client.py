"""Files over http and https, by the standard library's client: written and hashed as they come.

A block at a time is received, hashed and written before it leaves the processor's cache, by calls
that let other threads run. Proxies and certificates are those of the environment ($https_proxy,
$no_proxy, $SSL_CERT_FILE and their kind).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import mmap
import string
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit, urlunsplit

CONNECT_SECONDS, SILENT_SECONDS = 10, 30
_BLOCK = 256 * 2**10
_AGENT = {"User-agent": "guidance-train"}


class AnswerError(OSError):
    """The server's answer was not the file but a status, such as 403."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status} {message}")
        self.status, self.message = status, message


class TooLargeError(OSError):
    """More came, or was announced, than may come."""


def copy_file(
    url: str, to: Path, most: int | None = None, headers: Mapping[str, str] | None = None
) -> str:
    """Write the file at a URL to ``to``, at most ``most`` bytes; its sha256 in hex.

    ``headers`` go to the origin of ``url`` alone, wherever it redirects to. Raises
    FileNotFoundError, AnswerError, TooLargeError, ValueError for what no other attempt would mend
    (an address, a certificate, an encoding), or another OSError or HTTPException where the
    connection fails.
    """
    try:
        with contextlib.closing(_open(url, headers or {})) as answer, to.open("wb") as file:
            return _copy(answer, file, most)
    except TimeoutError:
        raise TimeoutError(f"nothing came for {SILENT_SECONDS} s") from None


def file_sha256(path: Path) -> str:
    """The sha256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(answer: Any, file: BinaryIO, most: int | None) -> str:
    if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
        raise ValueError(f"the server sends it encoded ({encoding}); have it served as it is")
    length = int(answer.headers.get("Content-Length") or -1)
    size, digest = 0, hashlib.sha256()
    # At the start of a page, as copies out of the kernel are several times slower on some
    # processors when their ends are aligned unlike; private, or forked processes would share it.
    block = memoryview(mmap.mmap(-1, _BLOCK, flags=mmap.MAP_PRIVATE))
    while True:
        if most is not None and max(size, length) > most:
            raise TooLargeError(f"more than the {most} bytes came that are expected")
        if not (count := answer.readinto(block)):
            break
        size += count
        digest.update(block[:count])
        file.write(block[:count])
    if size < length:
        raise OSError(f"the connection ended after {size} of {length} bytes")
    return digest.hexdigest()


def _open(url: str, headers: Mapping[str, str]) -> Any:
    opener = urllib.request.OpenerDirector()
    for kind in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
        _Http,
        _Https,
    ):
        opener.add_handler(kind())
    request = urllib.request.Request(_quoted(url), headers={**_AGENT, **headers})
    try:
        return opener.open(request, timeout=CONNECT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                raise FileNotFoundError(f"status 404 {error.reason}") from None
            raise AnswerError(error.code, str(error.reason)) from None
    except http.client.InvalidURL as error:
        raise ValueError(str(error)) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ValueError):
            raise error.reason from None
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise OSError(f"cannot connect to {urlsplit(url).hostname}: {reason}") from None


def _quoted(url: str) -> str:
    """The address with spaces and letters beyond ASCII escaped. Raises ValueError."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("credentials do not belong in an address")
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(path=path, query=query))


class _Patient:
    """Waits longer for an answer than for a connection."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(SILENT_SECONDS)


class _Connection(_Patient, http.client.HTTPConnection):
    pass


class _SecureConnection(_Patient, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and tells other origins no credentials."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, _quoted(newurl))
        if new and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
            new.headers = dict(_AGENT)
        return new
