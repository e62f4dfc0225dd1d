"""One file from anywhere: http and https by a client of ours, the rest by the client of fsspec.

Every transfer has connections of its own, and an event loop if it needs one, which end with it.
What stayed open would be shared with loader processes that are forked later, and a child that
closes such a connection takes it out of its parent's event loop too: the parent then waits for
ever.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol

from pipeline.storage.http_client import CONNECT_SECONDS, SILENT_SECONDS, copy_file, file_sha256

_HTTP = ("http", "https")
_NESTED = {"client_kwargs", "config_kwargs"}
_local = threading.local()


def transfer(url: str, to: Path, most: int | None) -> str:
    """Write the file at ``url`` to ``to``, at most ``most`` bytes; its sha256 in hex.

    Raises ImportError or ValueError for a protocol without a client, else what the client raises.
    """
    protocol = split_protocol(url)[0]
    options = {k: v for name in _HTTP for k, v in fsspec.config.conf.get(name, {}).items()}
    if protocol in _HTTP and options.keys() <= {"headers"}:
        return copy_file(url, to, most, options.get("headers"))
    _by_fsspec(protocol, url, to, most)
    return file_sha256(to)


def _by_fsspec(protocol: str, url: str, to: Path, most: int | None) -> None:
    kind = fsspec.get_filesystem_class(protocol)
    if not kind.async_impl:
        system = kind(skip_instance_cache=True)
        system.get_file(kind._strip_protocol(url), str(to), callback=_Limit(most))
        return
    work = _transfer(kind, protocol, url, to, most)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:  # in a notebook
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, work).result()


async def _transfer(kind: Any, protocol: str, url: str, to: Path, most: int | None) -> None:
    options = _options(protocol)
    for name in (kind.protocol,) if isinstance(kind.protocol, str) else kind.protocol:
        # fsspec would take the whole of ours for the whole of what the environment says.
        given = fsspec.config.conf.get(name, {})
        options |= {
            key: options[key] | given[key] for key in _NESTED & options.keys() & given.keys()
        }
    system = kind(asynchronous=True, skip_instance_cache=True, **options)
    if hasattr(system, "retries"):
        system.retries = 1  # retries are the caller's
    connect = getattr(system, "set_session", None)
    session = await connect() if connect else None
    try:
        await system._get_file(kind._strip_protocol(url), str(to), callback=_Limit(most))
    finally:
        if session is not None:
            await session.close()


def _options(protocol: str) -> dict[str, Any]:
    """Timeouts, and no retries of the client's own: one rule for all protocols."""
    if protocol in _HTTP:
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
        )
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    if protocol in ("s3", "s3a"):
        return {
            "session": _s3_session(),
            "config_kwargs": {
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": SILENT_SECONDS,
                "retries": {"total_max_attempts": 1},
            },
        }
    return {}


def _s3_session() -> Any:
    """What a thread knows of S3: no connection, but the service's description and credentials."""
    if not hasattr(_local, "session"):
        from aiobotocore.session import AioSession  # takes a while, and only s3 needs it

        _local.session = AioSession()
    return _local.session


class _Limit(fsspec.Callback):
    """Stops a transfer that brings too much, before it fills the disk."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most = most

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.most is not None and self.value > self.most:
            raise OSError(f"more than the {self.most} bytes came that are expected")
