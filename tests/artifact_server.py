"""An HTTP server that stores artifacts, and rejects or delays those that a test chooses."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIMIT = 1000  # bytes of a file that the server accepts


class ArtifactServer(ThreadingHTTPServer):
    """Stores the files that MLflow's HTTP artifact repository sends, up to a size."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stored: dict[str, bytes] = {}
        self.limit, self.delay = LIMIT, 0.0
        self.status = dict[str, int]()  # of the response by file name
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *arguments: object) -> None:
        self.shutdown()
        super().__exit__(*arguments)


class _Handler(BaseHTTPRequestHandler):
    server: ArtifactServer

    def do_PUT(self) -> None:
        if "Content-Length" in self.headers:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        else:  # requests sends an empty file as a single empty chunk
            data = b""
            assert self.rfile.read(5) == b"0\r\n\r\n"
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append(name)
        time.sleep(self.server.delay)
        status = self.server.status.get(name, 413 if len(data) > self.server.limit else 200)
        if status == 200:
            self.server.stored[self.path.split("/artifacts/", 1)[-1]] = data
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""
