"""The faulty proxy breaks requests as it says, and forwards all others unchanged."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.chaos.proxy import FaultyProxy, Trouble

BODY = bytes(range(256)) * 100


class EchoServer(ThreadingHTTPServer):
    """Responds with the body of the request, and keeps what it has received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.received: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Echo(BaseHTTPRequestHandler):
    server: EchoServer

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server
        server.shutdown()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(f"127.0.0.1:{server.server_port}", seed=0, latency_path="/slow/")
    yield proxy
    proxy.close()


def put(proxy: FaultyProxy, path: str = "/x", body: bytes = BODY) -> bytes:
    request = urllib.request.Request(proxy.uri + path, body, method="PUT")
    with urllib.request.urlopen(request, None, 5) as response:
        data: bytes = response.read()
    return data


def test_requests_pass_unchanged(proxy: FaultyProxy, server: EchoServer) -> None:
    assert put(proxy) == BODY
    assert server.received == [BODY]
    assert not proxy.broken


@pytest.mark.parametrize(
    ("kind", "reaches_the_server"),
    [("refuse", False), ("cut_upload", False), ("cut_response", True)],
)
def test_connections_are_cut(
    proxy: FaultyProxy, server: EchoServer, kind: str, reaches_the_server: bool
) -> None:
    proxy.trouble = Trouble(kind)
    with pytest.raises((OSError, IncompleteRead)):
        put(proxy)
    assert (server.received == [BODY]) is reaches_the_server
    assert proxy.broken == {kind: 1}


def test_statuses_are_sent(proxy: FaultyProxy, server: EchoServer) -> None:
    proxy.trouble = Trouble("status", value=503)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        put(proxy)
    proxy.trouble = Trouble("too_large", value=1000)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        put(proxy)
    assert put(proxy, body=b"small") == b"small"
    assert server.received == [b"small"]


def test_a_share_of_the_requests_is_broken(proxy: FaultyProxy, server: EchoServer) -> None:
    proxy.trouble = Trouble("status", share=0.5, value=500)
    for _ in range(40):
        try:
            put(proxy, body=b"x")
        except urllib.error.HTTPError:
            continue
    assert 8 <= len(server.received) <= 32
    assert len(server.received) + proxy.broken["status"] == 40


def test_slow_and_delayed_requests_take_time(proxy: FaultyProxy) -> None:
    proxy.trouble = Trouble("slow", value=0.4)
    began = time.monotonic()
    assert put(proxy) == BODY
    assert time.monotonic() - began >= 0.35
    proxy.trouble, proxy.latency = None, 0.3
    began = time.monotonic()
    put(proxy, "/slow/x")
    assert time.monotonic() - began >= 0.3


def test_a_hanging_request_ends_with_the_trouble(proxy: FaultyProxy) -> None:
    proxy.trouble = Trouble("hang")
    threading.Timer(0.5, lambda: setattr(proxy, "trouble", None)).start()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"reset|closed|Remote end"):
        put(proxy)
    assert 0.4 <= time.monotonic() - began < 4
