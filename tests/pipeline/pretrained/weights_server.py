"""A local HTTP server of one file, which can also fail."""

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at any path; `answers` are how the next requests end instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.answers: list[str] = []
        self.requests = 0
        self.authorization: str | None = None

    def url(self, path: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.authorization = self.headers["Authorization"]
        answer = self.server.answers.pop(0) if self.server.answers else "whole"
        if answer.isdigit():
            self.send_error(int(answer))
            return
        content = self.server.content
        self.send_response(200)
        if answer != "unmeasured":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:1000] if answer == "cut" else content)

    def log_message(self, *_: Any) -> None:
        pass
