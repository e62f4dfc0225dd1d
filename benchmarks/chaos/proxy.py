"""An HTTP proxy before one server that breaks requests in the ways that networks and servers do."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_HOP_BY_HOP = {"host", "connection", "keep-alive", "content-length", "transfer-encoding", "expect"}
SLOW_PIECES = 20  # of a slow body
HANG_SECONDS = 300.0  # a request that hangs is not answered for longer than any client waits


class Trouble(NamedTuple):
    """What happens to requests: to a ``share`` of them, drawn at random.

    ``status`` answers with ``value`` as the status, ``too_large`` answers 413 to bodies above
    ``value`` bytes, ``refuse`` resets connections, ``hang`` never answers, ``cut_upload`` resets
    in the middle of the request's body, ``cut_response`` resets in the middle of the response, so
    that the server has done what the client repeats, ``slow`` takes ``value`` seconds for a body.
    """

    kind: str
    share: float = 1.0
    value: float = 0.0


class FaultyProxy(ThreadingHTTPServer):
    """Forwards requests to ``target`` (host:port) on the loopback interface.

    Set ``trouble`` to break requests, and ``latency`` to delay uploads below ``latency_path`` by
    that many seconds. ``broken`` counts the broken requests by kind.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: str, seed: int, latency_path: str = "\0") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.latency_path = target, latency_path
        self.address = f"127.0.0.1:{self.server_port}"
        self.uri = f"http://{self.address}"
        self.trouble: Trouble | None = None
        self.latency = 0.0
        self.broken: Counter[str] = Counter()
        self._draws, self._lock = random.Random(seed), threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()

    def draw(self) -> Trouble | None:
        """Return what happens to the next request."""
        with self._lock:
            trouble = self.trouble
            if trouble is None or self._draws.random() >= trouble.share:
                return None
            return trouble

    def count(self, kind: str) -> None:
        """Count a request that was broken."""
        with self._lock:
            self.broken[kind] += 1

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; unlike the base class, without an orderly end before a reset."""
        self.close_request(request)

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that close their connection, which is what killed processes do."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    timeout = 120
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        trouble = self.server.draw()
        kind = trouble.kind if trouble else ""
        if trouble and kind in ("refuse", "hang"):
            self.server.count(kind)
            until = time.monotonic() + (HANG_SECONDS if kind == "hang" else 0.0)
            while self.server.trouble is trouble and time.monotonic() < until:
                time.sleep(0.1)
            return self._reset()
        length = int(self.headers.get("Content-Length", 0))
        if kind == "cut_upload" and (length or "chunked" in self._encoding()):
            self.server.count(kind)
            self.rfile.read(min(length // 2, 2**20))
            return self._reset()
        body = self._body(length)
        if trouble and (kind == "status" or (kind == "too_large" and len(body) > trouble.value)):
            self.server.count(kind)
            return self._respond(413 if kind == "too_large" else int(trouble.value), {}, b"")
        if self.server.latency and self.command != "GET" and self.server.latency_path in self.path:
            time.sleep(self.server.latency)
        if trouble and kind == "slow":
            self.server.count(kind)
            time.sleep(trouble.value / 2)
        try:
            status, headers, content = self._forward(body)
        except OSError:  # the server is down
            return self._respond(502, {}, b"")
        if kind == "cut_response":
            self.server.count(kind)
            return self._respond(status, headers, content, sent=len(content) // 2)
        self._respond(status, headers, content, trouble.value if trouble and kind == "slow" else 0)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _encoding(self) -> str:
        return str(self.headers.get("Transfer-Encoding", ""))

    def _body(self, length: int) -> bytes:
        if "chunked" not in self._encoding():
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        connection = http.client.HTTPConnection(self.server.target, timeout=120)
        with contextlib.closing(connection):
            if body or self.command in ("PUT", "POST", "PATCH"):
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            kept = dict(response.getheaders())
            if self.command == "HEAD":
                return response.status, kept, b""
            return response.status, kept, response.read()

    def _respond(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        seconds: float = 0.0,
        sent: int | None = None,
    ) -> None:
        """Send a response, over ``seconds``, or only its first ``sent`` bytes."""
        if sent == 0:
            return self._reset()
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        size = -(-len(body) // SLOW_PIECES) if seconds else len(body)
        for at in range(0, len(body[:sent]), max(1, size)):
            self.wfile.write(body[:sent][at : at + size])
            time.sleep(seconds / SLOW_PIECES / 2)
        if sent is not None:
            self._reset()
        return None

    def _reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, *_: object) -> None:
        """Print nothing."""
