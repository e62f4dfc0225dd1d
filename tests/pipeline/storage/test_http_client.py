"""Downloads over http and https from local servers: complete, cut, redirected, certified."""

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import json
import multiprocessing
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import UserError
from pipeline.storage import least_rate
from pipeline.storage.download import download_file
from pipeline.storage.http_client import HttpStatusError, TooLargeError, copy_file
from pipeline.storage.least_rate import SlowTransferError
from pipeline.storage.remote import Remote
from tests.conftest import ROOT
from tests.ports import free_port

CONTENT = bytes(range(256)) * 4000  # a megabyte: several blocks


class Server(ThreadingHTTPServer):
    """Handles every GET by ``answer``, and records the paths and headers of the requests."""

    def __init__(self, answer: Callable[[Any], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.keep_alive = False
        self.received: list[tuple[str, dict[str, str]]] = []

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.received.append((self.path, dict(self.headers)))
        self.server.answer(self)
        self.close_connection = not self.server.keep_alive

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    running = []

    def start(answer: Callable[[Any], None], context: ssl.SSLContext | None = None) -> Server:
        server = Server(answer)
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def complete(handler: Any, content: bytes = CONTENT) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def cut(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:300_000])


def chunked(handler: Any, last: bool = True) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for at in range(0, len(CONTENT), 100_000):
        piece = CONTENT[at : at + 100_000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    if last:
        handler.wfile.write(b"0\r\n\r\n")


def redirect(to: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a TLS context with a self-signed certificate for 127.0.0.1, and the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return context, pem


@pytest.mark.parametrize("answer", [complete, chunked])
def test_copy_file_writes_the_file_and_returns_its_sha256(serve, tmp_path, answer):
    found = copy_file(serve(answer).url(), tmp_path / "file", len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert found == hashlib.sha256(CONTENT).hexdigest()


def test_forked_processes_do_not_share_connections(serve, tmp_path):
    """The data of one never ends up in the file of another."""

    def of_path(handler: Any) -> None:
        complete(handler, handler.path[1:2].encode() * len(CONTENT))

    server = serve(of_path)
    url = server.url().removesuffix("/file")
    copy_file(f"{url}/x", tmp_path / "x")

    def receive(name: str) -> None:
        for _ in range(20):
            copy_file(f"{url}/{name}", tmp_path / name)
            assert (tmp_path / name).read_bytes() == name.encode() * len(CONTENT)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=receive, args=(name,)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("answer", [cut, lambda handler: chunked(handler, last=False)])
def test_cut_connection_is_an_error(serve, tmp_path, answer):
    with pytest.raises((OSError, HTTPException)):
        copy_file(serve(answer).url(), tmp_path / "file")


@pytest.mark.parametrize("answer", [complete, chunked])
def test_too_large_file_is_rejected(serve, tmp_path, answer):
    with pytest.raises(TooLargeError, match=f"more than the expected {len(CONTENT) - 1} bytes"):
        copy_file(serve(answer).url(), tmp_path / "file", len(CONTENT) - 1)


@pytest.mark.parametrize(("status", "kind"), [(404, FileNotFoundError), (403, HttpStatusError)])
def test_error_status_leaves_no_file(serve, tmp_path, status, kind):
    server = serve(lambda handler: handler.send_error(status))
    with pytest.raises(kind, match=f"status {status}"):
        copy_file(server.url(), tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_spaces_and_accents_in_a_url_are_escaped(serve, tmp_path):
    server = serve(complete)
    copy_file(server.url().replace("file", "my données%20?key=a b"), tmp_path / "file")
    assert server.received[0][0] == "/my%20donn%C3%A9es%20?key=a%20b"


def test_invalid_url_is_reported_without_its_secrets(tmp_path):
    with pytest.raises(ValueError, match="^credentials do not belong in a URL$"):
        copy_file("http://me:secret@127.0.0.1/x", tmp_path / "file")
    with pytest.raises(ValueError, match="Port could not be cast to integer"):
        copy_file("http://127.0.0.1:port/x", tmp_path / "file")


def test_encoded_response_is_rejected(serve, tmp_path):
    def encoded(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()

    with pytest.raises(ValueError, match="encoded .gzip.; have it served as it is"):
        copy_file(serve(encoded).url(), tmp_path / "file")


def test_headers_are_sent_to_their_origin_only(serve, tmp_path):
    elsewhere = serve(complete)
    away = serve(redirect(elsewhere.url()))
    copy_file(away.url(), tmp_path / "file", headers={"Authorization": "Bearer secret"})
    assert away.received[0][1]["Authorization"] == "Bearer secret"
    assert "Authorization" not in elsewhere.received[0][1]
    assert elsewhere.received[0][1]["User-Agent"] == "guidance-train"

    def first_elsewhere(handler: Any) -> None:
        (redirect("/other") if handler.path == "/file" else complete)(handler)

    here = serve(first_elsewhere)
    copy_file(here.url(), tmp_path / "file", headers={"Authorization": "Bearer secret"})
    assert [path for path, _ in here.received] == ["/file", "/other"]
    assert here.received[1][1]["Authorization"] == "Bearer secret"


def test_redirect_to_a_file_is_rejected(serve, tmp_path):
    (tmp_path / "secret").write_text("secret")
    server = serve(redirect(f"file://{tmp_path}/secret"))
    with pytest.raises(HttpStatusError):
        copy_file(server.url(), tmp_path / "file")


def test_header_replaces_the_default_one_in_any_case(serve, tmp_path):
    names = []

    def record_names(handler: Any) -> None:
        names.extend(name.lower() for name in handler.headers)
        complete(handler)

    server = serve(record_names)
    copy_file(server.url(), tmp_path / "file", headers={"user-agent": "mine"})
    assert names.count("user-agent") == 1
    assert server.received[0][1]["user-agent"] == "mine"


def test_proxy_of_the_environment_is_used(serve, tmp_path, monkeypatch):
    proxy = serve(complete)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "")
    copy_file("http://shards.invalid/file", tmp_path / "file")
    assert proxy.received[0][0] == "http://shards.invalid/file"


def test_login_of_a_proxy_is_sent_to_it_and_not_printed(serve, tmp_path, monkeypatch):
    proxy = serve(complete)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", f"http://me:se%20cret@127.0.0.1:{proxy.server_port}")
    copy_file("http://shards.invalid/file", tmp_path / "file")
    login = base64.b64encode(b"me:se cret").decode()
    assert proxy.received[0][1]["proxy-authorization"] == f"Basic {login}"
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{free_port()}")
    with pytest.raises(OSError, match="^cannot connect to shards.invalid through a proxy: ") as e:
        copy_file("http://shards.invalid/file", tmp_path / "file")
    assert "secret" not in str(e.value)


def test_login_of_a_proxy_may_have_any_characters(serve, tmp_path, monkeypatch):
    proxy = serve(complete)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", f"http://m%C3%A9:5%E2%82%AC@127.0.0.1:{proxy.server_port}")
    copy_file("http://shards.invalid/file", tmp_path / "file")
    login = base64.b64encode("mé:5€".encode()).decode()
    assert proxy.received[0][1]["proxy-authorization"] == f"Basic {login}"


def test_hosts_of_no_proxy_are_reached_directly(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    copy_file(serve(complete).url(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_netrc_is_not_read_and_nothing_encoded_is_requested(serve, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    server = serve(complete)
    copy_file(server.url(), tmp_path / "file")
    headers = server.received[0][1]
    assert "Authorization" not in headers and headers["Accept-Encoding"] == "identity"


def test_endless_redirects_are_an_error(serve, tmp_path):
    server = serve(redirect("/again"))
    with pytest.raises(HttpStatusError, match="status 302 redirected more than 10 times"):
        copy_file(server.url(), tmp_path / "file")
    assert len(server.received) == 11 and not (tmp_path / "file").exists()


def test_redirect_to_a_url_with_accents_is_followed(serve, tmp_path):
    def raw(handler: Any) -> None:
        if handler.path != "/file":
            complete(handler)
            return
        handler.wfile.write("HTTP/1.1 302 Found\r\nLocation: /donn\xe9es x\r\n\r\n".encode())

    server = serve(raw)
    copy_file(server.url(), tmp_path / "file")
    assert server.received[1][0] == "/donn%C3%A9es%20x"


def test_failed_connections_are_errors_in_one_line(serve, tmp_path):
    closed = f"http://127.0.0.1:{free_port()}/file"
    with pytest.raises(OSError, match=r"^cannot connect to 127\.0\.0\.1: Connection refused$"):
        copy_file(closed, tmp_path / "file")
    with pytest.raises(OSError, match=r"^the connection ended after 300000 of 1024000 bytes$"):
        copy_file(serve(cut).url(), tmp_path / "file")
    with pytest.raises(OSError, match=r"^connection to 127\.0\.0\.1 failed: "):
        copy_file(serve(lambda handler: None).url(), tmp_path / "file")


def trickle(handler: Any, headers: bool = False) -> None:
    """Send a byte every 50 ms, for 10 s; the headers first, or already those so slowly."""
    if not headers:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
    else:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.05)


def trickle_chunks(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b"1\r\nx\r\n")
            time.sleep(0.05)


@pytest.mark.parametrize("answer", [trickle, partial(trickle, headers=True), trickle_chunks])
def test_transfer_below_the_least_rate_is_ended(serve, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(least_rate, "WINDOW_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(SlowTransferError, match=r"^too slow: \d+ bytes in .* s, the limit is"):
        copy_file(serve(answer).url(), tmp_path / "file")
    assert time.monotonic() - began < 8


def test_transfer_of_fsspec_below_the_least_rate_is_ended(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(least_rate, "WINDOW_SECONDS", 0.5)
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"trust_env": False}})
    began = time.monotonic()
    with pytest.raises(SlowTransferError):
        download_file(serve(trickle).url(), tmp_path / "file")
    assert time.monotonic() - began < 8
    fast = serve(complete).url()
    assert download_file(fast, tmp_path / "file") == hashlib.sha256(CONTENT).hexdigest()


def test_transfer_above_the_least_rate_takes_longer_than_a_window(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(least_rate, "WINDOW_SECONDS", 0.3)
    monkeypatch.setattr(least_rate, "MIN_BYTES", 1000)

    def slow(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        for at in range(0, len(CONTENT), 64_000):
            handler.wfile.write(CONTENT[at : at + 64_000])
            time.sleep(0.1)

    found = copy_file(serve(slow).url(), tmp_path / "file")
    assert found == hashlib.sha256(CONTENT).hexdigest()


def test_no_connection_stays_open(serve, tmp_path):
    def open_sockets() -> int:
        links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
        return sum(link.startswith("socket:") for link in links)

    kept_alive = serve(complete)
    kept_alive.keep_alive = True
    before = open_sockets()
    for limit in (None, 1000):
        with contextlib.suppress(TooLargeError):
            copy_file(kept_alive.url(), tmp_path / "file", limit)
    deadline = time.monotonic() + 20
    while open_sockets() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # the server's side closes when it has noticed
    assert open_sockets() == before


def test_certificate_is_checked_against_those_of_the_environment(serve, tmp_path, monkeypatch):
    context, certificate = certified(tmp_path)
    server = serve(complete, context)
    remote = Remote(server.url(scheme="https").removesuffix("/file"))
    with pytest.raises(UserError, match=r"cannot be read: .*CERTIFICATE_VERIFY_FAILED"):
        remote.fetch("file", tmp_path / "file")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    remote.fetch("file", tmp_path / "file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_fsspec_client_is_used_for_its_options(serve, tmp_path):
    server = serve(complete)
    options = {"headers": {"Authorization": "Bearer secret"}, "client_kwargs": {"trust_env": False}}
    code = "import sys; from pathlib import Path\n"
    code += "from pipeline.storage.download import download_file\n"
    code += "print(download_file(sys.argv[1], Path(sys.argv[2])))"
    done = subprocess.run(
        [sys.executable, "-c", code, server.url(), tmp_path / "file"],
        env={"FSSPEC_HTTP": json.dumps(options)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == hashlib.sha256(CONTENT).hexdigest(), done.stderr
    assert server.received[-1][1]["Authorization"] == "Bearer secret"
    assert "guidance-train" not in server.received[-1][1]["User-Agent"]
