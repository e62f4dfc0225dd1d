"""A file that is replaced under a condition, on disks and on servers that know it or do not."""

import hashlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.storage.folder import Storage
from pipeline.storage.lease import LEASE_FILE, Lease, LeaseHeldError, LeaseInfo
from pipeline.storage.lease.compare_and_swap import (
    Content,
    LocalFile,
    S3Object,
    SwapFile,
    swap_file,
)


class S3Server(ThreadingHTTPServer):
    """Objects by path. ``conditions`` says what happens to the headers of conditional writes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), S3Handler)
        self.objects: dict[str, bytes] = {}
        self.conditions, self.lost_responses = "checked", 0
        self.writing = threading.Lock()

    @property
    def uri(self) -> str:
        return (
            f"s3://bucket/run?scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=a"
        )


class S3Handler(BaseHTTPRequestHandler):
    """The two requests of S3 that a lease uses."""

    protocol_version = "HTTP/1.1"
    server: S3Server

    def do_GET(self) -> None:
        found = self.server.objects.get(self.path)
        if found is None:
            self._respond(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._respond(200, found, tag(found))

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        absent, same = self.headers["If-None-Match"], self.headers["If-Match"]
        with self.server.writing:
            found = self.server.objects.get(self.path)
            if self.server.conditions == "rejected" and (absent or same):
                self._respond(501, b"<Error><Code>NotImplemented</Code></Error>")
                return
            if self.server.conditions == "checked" and (
                (absent and found is not None) or (same and (found is None or tag(found) != same))
            ):
                self._respond(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.server.objects[self.path] = data
        if self.server.lost_responses:
            self.server.lost_responses -= 1
            self.close_connection = True
            return
        self._respond(200, b"", tag(data))

    def _respond(self, status: int, body: bytes, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # pyarrow would not use it either
    with S3Server() as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()


def exercise(first: SwapFile, second: SwapFile) -> None:
    assert first.read() == second.read() == Content(None)
    absent = first.read()
    assert first.replace(b"one", absent)
    assert not second.replace(b"two", absent)
    seen = second.read()
    assert seen.data == b"one"
    assert second.replace(b"two", seen)
    assert not first.replace(b"three", seen)
    assert first.read().data == b"two"


def test_local_file_is_replaced_only_if_unchanged(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    exercise(swap_file(storage, "a"), swap_file(storage, "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def count_up(path: Path, times: int) -> None:
    file = LocalFile(path)
    for _ in range(times):
        while True:
            seen = file.read()
            if file.replace(str(int(seen.data or b"0") + 1).encode(), seen):
                break


def test_no_replacement_of_a_local_file_is_lost(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=count_up, args=(tmp_path / "a", 20))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "a").read_bytes() == b"60"


def test_object_in_a_store_without_conditions_is_replaced_if_unchanged() -> None:
    storage = Storage("mock:///bucket/run")
    storage.create()
    file = swap_file(storage, "a")
    assert not file.atomic
    exercise(file, file)


@pytest.mark.parametrize("conditions", ["checked", "ignored", "rejected"])
def test_object_is_replaced_only_if_unchanged(server: S3Server, conditions: str) -> None:
    server.conditions = conditions
    storage = Storage(server.uri)
    first, second = swap_file(storage, "a"), swap_file(storage, "a")
    assert isinstance(first, S3Object)
    if conditions != "checked":  # found out by the first write of each client
        for file in (first, second):
            assert file.replace(b"x", file.read())
            server.objects.clear()
    exercise(first, second)
    assert first.atomic == second.atomic == (conditions == "checked")


def test_write_whose_response_is_lost_counts(server: S3Server) -> None:
    file = swap_file(Storage(server.uri), "a")
    server.lost_responses = 1  # the client repeats the request, whose condition fails now
    assert file.replace(b"one", Content(None))
    server.lost_responses = 1
    assert file.replace(b"two", file.read())
    assert server.objects == {"/bucket/run/a": b"two"}


def test_server_that_does_not_respond_is_an_os_error(server: S3Server) -> None:
    file = swap_file(Storage(server.uri), "a")
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="Could not connect to the endpoint URL"):
        file.read()


def test_second_writer_without_conditions_is_noticed_by_reading_back(server: S3Server) -> None:
    server.conditions = "ignored"
    storage = Storage(server.uri)
    first, second = (Lease(storage, "run 'one'", 3.0) for _ in range(2))
    failed: list[str] = []

    def acquire() -> None:
        try:
            first.acquire()
        except LeaseHeldError as error:
            failed.append(error.holder)

    thread = threading.Thread(target=acquire)
    thread.start()
    path = f"/bucket/run/{LEASE_FILE}"
    while path not in server.objects:
        pass
    # Another machine has seen no lease either, and writes after this one.
    info = LeaseInfo.parse(server.objects[path], path)
    other = info.model_copy(update={"owner": second.owner, "holder": "process 1 on other"})
    threading.Event().wait(0.1)
    server.objects[path] = other.encode()
    thread.join()
    assert failed == ["process 1 on other"]
    assert json.loads(server.objects[path])["owner"] == second.owner
