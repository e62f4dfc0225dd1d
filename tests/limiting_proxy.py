"""An HTTP proxy in this process that rejects large uploads, as a reverse proxy does."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding"}


class LimitingProxy(ThreadingHTTPServer):
    """Forwards requests to a server, but answers ``status`` to bodies above ``limit`` bytes."""

    def __init__(self, target: str, limit: int, status: int = 413) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.limit, self.status = target, limit, status
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.rejected: set[str] = set()  # names of files
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *arguments: object) -> None:
        self.shutdown()
        super().__exit__(*arguments)


class _Handler(BaseHTTPRequestHandler):
    server: LimitingProxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if len(body) > self.server.limit:
            self.server.rejected.add(self.path.rsplit("/", 1)[-1])
            self._respond(self.server.status, {}, b"")
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _NOT_FORWARDED}
        request = urllib.request.Request(
            self.server.target + self.path, body or None, headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request, None, 60) as response:
                self._respond(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            self._respond(error.code, dict(error.headers), error.read())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def _respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
