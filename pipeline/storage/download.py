"""One file from any URL: http and https by `http_client`, every other protocol by fsspec.

Every download has its own connections, and its own event loop if the client needs one, and closes
them at its end. Loader processes that are forked later would share an open connection, and a child
that closes it also removes it from its parent's event loop: the parent would wait forever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol

from pipeline.storage import least_rate
from pipeline.storage.checksum import file_sha256
from pipeline.storage.http_client import (
    CONNECT_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    TooLargeError,
    copy_file,
)
from pipeline.storage.least_rate import LeastRate

_HTTP, _S3 = ("http", "https"), ("s3", "s3a")
_NESTED_OPTIONS = {"client_kwargs", "config_kwargs"}
_local = threading.local()


def download_file(
    url: str, to: Path, max_bytes: int | None = None, *, anonymous: bool = False
) -> str:
    """Write the file at a URL to ``to``, without retries, and return its sha256 in hex.

    An ``anonymous`` download over http or https sends no credentials. Raises ImportError or
    ValueError for a protocol without a client, TooLargeError, or what the client raises.
    """
    protocol = split_protocol(url)[0]
    if protocol in _HTTP:
        # fsspec has one client for both, and its options may stand under either name.
        options = {k: v for name in _HTTP for k, v in fsspec.config.conf.get(name, {}).items()}
        if anonymous or options.keys() <= {"headers"}:
            headers = None if anonymous else options.get("headers")
            return copy_file(url, to, max_bytes, headers)
    _copy_by_fsspec(protocol, url, to, max_bytes)
    _SizeLimit(max_bytes).check(to.stat().st_size)  # some clients report no progress
    return file_sha256(to)


def _copy_by_fsspec(protocol: str, url: str, to: Path, max_bytes: int | None) -> None:
    client = fsspec.get_filesystem_class(protocol)
    if not client.async_impl:
        files = client(skip_instance_cache=True)
        files.get_file(client._strip_protocol(url), str(to), callback=_SizeLimit(max_bytes))
        return
    work = _copy_asynchronously(client, protocol, url, to, max_bytes)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:  # in a notebook, for example
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, work).result()


async def _copy_asynchronously(
    client: Any, protocol: str, url: str, to: Path, max_bytes: int | None
) -> None:
    options = _options(protocol)
    for name in (client.protocol,) if isinstance(client.protocol, str) else client.protocol:
        # Merged here: fsspec would let ours replace the whole option of the environment.
        given = fsspec.config.conf.get(name, {})
        options |= {
            key: options[key] | given[key]
            for key in _NESTED_OPTIONS & options.keys() & given.keys()
        }
    files = client(asynchronous=True, skip_instance_cache=True, **options)
    if hasattr(files, "retries"):
        files.retries = 1  # the callers retry
    connect = getattr(files, "set_session", None)
    session = await connect() if connect else None
    try:
        progress = _SizeLimit(max_bytes)
        transfer = files._get_file(client._strip_protocol(url), str(to), callback=progress)
        # Of the others it is not known whether they report their progress.
        if protocol in (*_HTTP, *_S3):
            await _at_least_rate(transfer, progress)
        else:
            await transfer
    finally:
        if session is not None:
            await session.close()


async def _at_least_rate(transfer: Coroutine[Any, Any, None], progress: fsspec.Callback) -> None:
    """Await a transfer. Raises SlowTransferError, after cancelling it, if it is too slow."""
    task, rate, counted = asyncio.ensure_future(transfer), LeastRate(), 0
    try:
        while not (await asyncio.wait({task}, timeout=least_rate.WINDOW_SECONDS / 2))[0]:
            received = progress.value
            rate.add(received - counted)
            counted = received
        task.result()
    except BaseException:
        task.cancel()
        await asyncio.wait({task})
        raise


def _options(protocol: str) -> dict[str, Any]:
    """Return client options with the same timeouts for every protocol, and without retries."""
    if protocol in _HTTP:
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=READ_TIMEOUT_SECONDS
        )
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    if protocol in _S3:
        return {
            "session": _s3_session(),
            "config_kwargs": {
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "read_timeout": READ_TIMEOUT_SECONDS,
                "retries": {"total_max_attempts": 1},
            },
        }
    return {}


def _s3_session() -> Any:
    """Return this thread's S3 session: service description and credentials, no connection."""
    if not hasattr(_local, "session"):
        from aiobotocore.session import AioSession  # slow to import, and needed for s3 only

        _local.session = AioSession()
    return _local.session


class _SizeLimit(fsspec.Callback):
    """Stops a transfer that brings too many bytes, before it fills the disk."""

    def __init__(self, max_bytes: int | None) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self.check(self.value)

    def check(self, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            raise TooLargeError(f"more than the expected {self.max_bytes} bytes")
