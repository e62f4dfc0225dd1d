"""A small file that is replaced only if it still has the content that was read before.

- On a mounted file system a lock protects the comparison and the rename.
- On S3 the server compares: If-None-Match for a new object, If-Match for an existing one. pyarrow
  cannot send these headers, so the client is botocore.
- Elsewhere, and on servers that ignore the headers, the comparison and the write are two requests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.storage.durable import write_durably
from pipeline.storage.folder import NETWORK_ERRORS, S3Location, Storage, StoreOutage
from pipeline.storage.lock import try_lock_file

LOCK_SECONDS = 10.0  # for others that replace the file
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, METADATA_ATTEMPTS = 5.0, 10.0, 2, 5
_CHANGED = (404, 409, 412)  # deleted, replaced by a simultaneous request, or before
_UNSUPPORTED = (400, 501)


class Content(NamedTuple):
    """What a file contains, None if it does not exist, and the server's tag of this version."""

    data: bytes | None
    tag: str = ""


class SwapFile(Protocol):
    """Operations raise OSError."""

    atomic: bool  # False: another writer may act between the comparison and the write

    def read(self) -> Content:
        """Return the current content."""

    def replace(self, data: bytes, expected: Content) -> bool:
        """Replace the content if it is still the ``expected`` one; return whether it was."""


def swap_file(storage: Storage, name: str) -> SwapFile:
    """Return a file in a folder, with what its storage offers."""
    path = storage.local_path(name)
    if path is not None:
        return LocalFile(path)
    location = storage.s3_location(name)
    if location is not None:
        return S3Object(location, storage.uri)
    return PlainObject(storage, name)


class LocalFile:
    """A file on a local or shared file system."""

    atomic = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Content:
        """Return the current content."""
        try:
            with _local_outages():
                return Content(self._path.read_bytes())
        except FileNotFoundError:
            return Content(None)

    def replace(self, data: bytes, expected: Content) -> bool:
        """Compare and rename under a lock, where the file system has locks."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        with _local_outages(), try_lock_file(lock, LOCK_SECONDS, required=False) as held:
            if not held:
                raise TimeoutError(f"another process has held {lock} for {LOCK_SECONDS:g} s")
            if self.read() != expected:
                return False
            write_durably(self._path, data)
            return True


class PlainObject:
    """An object in a store without conditional writes."""

    atomic = False

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name

    def read(self) -> Content:
        """Return the current content."""
        try:
            return Content(self._storage.read(self._name))
        except FileNotFoundError:
            return Content(None)

    def replace(self, data: bytes, expected: Content) -> bool:
        """Compare and write in two requests."""
        if self.read() != expected:
            return False
        self._storage.write(self._name, data)
        return True


class S3Object:
    """An object of S3 or of a server with its interface; ``uri`` has options for the client."""

    def __init__(self, location: S3Location, uri: str) -> None:
        self._address = {"Bucket": location.bucket, "Key": location.key}
        self._client = _s3_client(uri, location.region)
        self.atomic = True
        self._checked = False

    def read(self) -> Content:
        """Return the current content."""
        with _os_errors():
            try:
                found = self._client.get_object(**self._address)
                return Content(found["Body"].read(), found["ETag"])
            except self._client.exceptions.NoSuchKey:
                return Content(None)

    def replace(self, data: bytes, expected: Content) -> bool:
        """Write under a condition that the server checks, if it can."""
        with _os_errors():
            condition = {"IfNoneMatch": "*"} if expected.data is None else {"IfMatch": expected.tag}
            if self.atomic and not self._put(data, condition):
                # The response to a write that was done may have been lost.
                return self.read().data == data
            if not self.atomic:
                if self.read() != expected:
                    return False
                self._put(data, {})
            elif not self._checked:
                self._checked = True
                # A server that knows the header rejects this: the object exists.
                self.atomic = not self._put(data, {"IfNoneMatch": "*"}) and self.atomic
            return True

    def _put(self, data: bytes, condition: dict[str, str]) -> bool:
        """Return whether the object was written; clear ``atomic`` if conditions are rejected."""
        from botocore.exceptions import ClientError

        try:
            self._client.put_object(**self._address, Body=data, **condition)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if condition and status in _CHANGED:
                return False
            if condition and status in _UNSUPPORTED:
                self.atomic = False
                return True
            raise
        return True


def _s3_client(uri: str, region: str) -> Any:
    """Return a client with the options of the URI, whose names are pyarrow's."""
    import botocore.session  # slow to import, and needed for s3 only
    from botocore.config import Config

    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    login, _, _ = parts.netloc.rpartition("@")
    key, _, secret = login.partition(":")
    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    own = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    session = botocore.session.get_session()
    # An instance's credentials come from a service that is slow at times.
    session.set_config_variable("metadata_service_timeout", CONNECT_SECONDS)
    session.set_config_variable("metadata_service_num_attempts", METADATA_ATTEMPTS)
    return session.create_client(
        "s3",
        region_name=region or None,
        endpoint_url=endpoint,
        aws_access_key_id=unquote(key) or None,
        aws_secret_access_key=unquote(secret) or None,
        verify=options.get("tls_ca_file_path"),
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            s3={"addressing_style": "path" if own else "auto"},
            # Not all servers know the checksums that newer clients add.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={},  # pyarrow reads no proxies from the environment either
        ),
    )


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise errors of botocore, which has its own types, as OSError; outages as StoreOutage."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise OSError(str(error)) from error
    except BotoCoreError as error:  # no connection, or no response in time
        raise StoreOutage(str(error)) from error
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kind = StoreOutage if status >= 500 or status in (408, 429) else OSError
        raise kind(str(error)) from error


@contextlib.contextmanager
def _local_outages() -> Iterator[None]:
    """Raise what a file system over a network reports while its server is away as StoreOutage."""
    try:
        yield
    except OSError as error:
        if error.errno in NETWORK_ERRORS:
            raise StoreOutage(str(error)) from error
        raise
