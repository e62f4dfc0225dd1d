"""One file over HTTP or HTTPS: written and hashed while it is received.

urllib3 does the protocol. What a transfer of data must not do is left out: nothing is retried (the
callers do that) or decoded, and no connection stays open, which processes forked later would share.
Proxies and certificates come from the environment ($http_proxy, $https_proxy, $no_proxy,
$SSL_CERT_FILE, $SSL_CERT_DIR). ~/.netrc is not read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import string
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)

from pipeline.storage.least_rate import LeastRate, SlowTransferError

CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 10, 30
MAX_REDIRECTS = 10
_BLOCK_BYTES = 2**20
_USER_AGENT = {"User-Agent": "guidance-train"}


class HttpStatusError(OSError):
    """The server responded with a status, such as 403, instead of the file."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status} {message}")
        self.status, self.message = status, message


class TooLargeError(OSError):
    """The server sent or announced more bytes than allowed."""


class _RateCheckedStream(io.RawIOBase):
    """What a socket receives, at the least rate; the headers too, which urllib3 reads byte-wise."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._rate = raw, LeastRate()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        size = self._raw.readinto(buffer)
        self._rate.add(size or 0)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_RateCheckedStream(self.fp.detach()))


class _HttpConnection(HTTPConnection):
    response_class = _Response


class _HttpsConnection(HTTPSConnection):
    response_class = _Response


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def copy_file(
    url: str, to: Path, max_bytes: int | None = None, headers: Mapping[str, str] | None = None
) -> str:
    """Write the file at a URL to ``to`` and return its sha256 in hex.

    ``headers`` are sent to the origin of ``url`` only, not to others that it redirects to.

    Raises FileNotFoundError for status 404, HttpStatusError for other statuses, TooLargeError,
    ValueError where another attempt cannot succeed (URL, certificate, encoding), SlowTransferError
    below the least rate, and other OSErrors where the connection or the disk fails.
    """
    with _get(url, headers or {}) as response, to.open("wb") as file:
        return _copy(response, file, max_bytes)


def _copy(response: urllib3.BaseHTTPResponse, file: BinaryIO, max_bytes: int | None) -> str:
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise ValueError(f"the server sends it encoded ({encoding}); have it served as it is")
    length = response.length_remaining  # None: not announced
    size, digest = 0, hashlib.sha256()
    while True:
        if max_bytes is not None and max(size, length or 0) > max_bytes:
            raise TooLargeError(f"more than the expected {max_bytes} bytes")
        try:
            block = response.read(_BLOCK_BYTES)
        except ProtocolError as error:
            _raise_if_slow(error)
            total = "" if length is None else f" of {length}"
            raise OSError(f"the connection ended after {size}{total} bytes") from None
        if not block:
            return digest.hexdigest()
        size += len(block)
        digest.update(block)
        file.write(block)


def _raise_if_slow(error: HTTPError) -> None:
    for cause in error.args:
        if isinstance(cause, SlowTransferError):
            raise cause from None


@contextlib.contextmanager
def _get(url: str, headers: Mapping[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
    """Request a URL, follow redirects, and yield the response that brings the file."""
    url, sent = _quoted(url), _headers(headers)
    for _ in range(MAX_REDIRECTS + 1):
        with (
            _builtin_errors(url),
            _pool(url) as pool,
            contextlib.closing(_request(pool, url, sent)) as response,
        ):
            location = response.get_redirect_location()
            if not location:
                _check_status(response)
                yield response
                return
            target = _redirected(url, location, response)
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            sent = _headers({})
        url = target
    raise HttpStatusError(response.status, f"redirected more than {MAX_REDIRECTS} times")


def _headers(given: Mapping[str, str]) -> urllib3.HTTPHeaderDict:
    """Return the headers of a request, whose names are the same in upper and lower case."""
    headers = urllib3.HTTPHeaderDict(_USER_AGENT)
    headers.update(given)
    return headers


def _pool(url: str) -> urllib3.PoolManager:
    """Return a pool for one transfer, through the proxy that the environment gives."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return _with_least_rate(urllib3.PoolManager(num_pools=1))
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    login = urlsplit(proxy)
    headers = {}
    if login.username is not None:
        credentials = f"{unquote(login.username)}:{unquote(login.password or '')}".encode()
        # Not urllib3.make_headers, which rejects characters beyond Latin-1.
        headers = {"proxy-authorization": f"Basic {base64.b64encode(credentials).decode()}"}
    return _with_least_rate(urllib3.ProxyManager(proxy, num_pools=1, proxy_headers=headers))


def _with_least_rate(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager


def _request(
    pool: urllib3.PoolManager, url: str, headers: Mapping[str, str]
) -> urllib3.BaseHTTPResponse:
    return pool.request(
        "GET",
        url,
        headers=headers,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
        retries=False,
        redirect=False,
        preload_content=False,
        decode_content=False,
    )


def _check_status(response: urllib3.BaseHTTPResponse) -> None:
    if response.status == 404:
        raise FileNotFoundError(f"status 404 {response.reason}")
    if not 200 <= response.status < 300:
        raise HttpStatusError(response.status, str(response.reason))


def _redirected(url: str, location: str, response: urllib3.BaseHTTPResponse) -> str:
    """Return the address that a redirect of ``url`` leads to."""
    # Headers are decoded as Latin-1; this gives back their bytes.
    location = quote(location, safe=string.punctuation, encoding="iso-8859-1")
    target = _quoted(urljoin(url, location))
    if urlsplit(target).scheme not in ("http", "https"):
        raise HttpStatusError(response.status, "redirected to an address that is not http or https")
    return target


def _quoted(url: str) -> str:
    """Return the URL with spaces and non-ASCII characters escaped. Raises ValueError."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("credentials do not belong in a URL")
    _ = parts.port  # raises
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(path=path, query=query))


@contextlib.contextmanager
def _builtin_errors(url: str) -> Iterator[None]:
    """Raise the errors of urllib3 as the built-in ones that `copy_file` documents."""
    try:
        yield
    except HTTPError as error:
        _raise_if_slow(error)
        raise _builtin_error(error, urlsplit(url).hostname) from None


def _builtin_error(error: HTTPError, host: str | None) -> Exception:
    peer = f"{host} through a proxy" if isinstance(error, ProxyError) else host
    inner = error.original_error if isinstance(error, ProxyError) else error
    if isinstance(inner, ReadTimeoutError):
        return TimeoutError(f"timed out while waiting for {peer}")
    cause = inner.__cause__ or next((a for a in inner.args if isinstance(a, Exception)), inner)
    if isinstance(cause, ValueError):  # certificates are rejected by one too
        return cause
    reason = getattr(cause, "strerror", None) or cause
    if isinstance(inner, ConnectTimeoutError) or isinstance(error, ProxyError):
        return OSError(f"cannot connect to {peer}: {reason}")
    return OSError(f"connection to {peer} failed: {reason}")
