"""Files over http and https from servers on this machine: whole, cut, redirected, certified."""

import datetime
import hashlib
import ipaddress
import json
import multiprocessing
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import UserError
from pipeline.storage.http_client import HttpStatusError, TooLargeError, copy_file
from pipeline.storage.remote import Remote

CONTENT = bytes(range(256)) * 4000  # a megabyte: several blocks


class Server(ThreadingHTTPServer):
    """Answers every GET by ``answer``; keeps the paths asked for and the headers that came."""

    def __init__(self, answer: Callable[[Any], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answer(self)
        self.close_connection = True

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


def whole(handler: Any, content: bytes = CONTENT) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def cut(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:300_000])


def in_chunks(handler: Any, last: bool = True) -> None:
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
    """A server's context with a certificate of its own for 127.0.0.1, and the certificate."""
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


@pytest.mark.parametrize("answer", [whole, in_chunks])
def test_a_file_comes_whole_with_its_hash(serve, tmp_path, answer):
    found = copy_file(serve(answer).url(), tmp_path / "file", len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert found == hashlib.sha256(CONTENT).hexdigest()


def test_forked_processes_do_not_meet(serve, tmp_path):
    """What one receives never reaches the file of another."""

    def of_path(handler: Any) -> None:
        whole(handler, handler.path[1:2].encode() * len(CONTENT))

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


@pytest.mark.parametrize("answer", [cut, lambda handler: in_chunks(handler, last=False)])
def test_a_cut_is_noticed(serve, tmp_path, answer):
    with pytest.raises((OSError, HTTPException)):
        copy_file(serve(answer).url(), tmp_path / "file")


@pytest.mark.parametrize("answer", [whole, in_chunks])
def test_too_much_is_refused(serve, tmp_path, answer):
    with pytest.raises(TooLargeError, match=f"more than the expected {len(CONTENT) - 1} bytes"):
        copy_file(serve(answer).url(), tmp_path / "file", len(CONTENT) - 1)


@pytest.mark.parametrize(("status", "kind"), [(404, FileNotFoundError), (403, HttpStatusError)])
def test_an_error_leaves_no_file(serve, tmp_path, status, kind):
    server = serve(lambda handler: handler.send_error(status))
    with pytest.raises(kind, match=f"status {status}"):
        copy_file(server.url(), tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_spaces_and_accents_in_an_address_are_escaped(serve, tmp_path):
    server = serve(whole)
    copy_file(server.url().replace("file", "my données%20?key=a b"), tmp_path / "file")
    assert server.asked[0][0] == "/my%20donn%C3%A9es%20?key=a%20b"


def test_what_is_no_address_is_said_without_its_secrets(tmp_path):
    with pytest.raises(ValueError, match="^credentials do not belong in a URL$"):
        copy_file("http://me:secret@127.0.0.1/x", tmp_path / "file")
    with pytest.raises(ValueError, match="Port could not be cast to integer"):
        copy_file("http://127.0.0.1:port/x", tmp_path / "file")


def test_an_encoded_answer_is_refused(serve, tmp_path):
    def encoded(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()

    with pytest.raises(ValueError, match="encoded .gzip.; have it served as it is"):
        copy_file(serve(encoded).url(), tmp_path / "file")


def test_headers_stay_with_their_origin(serve, tmp_path):
    elsewhere = serve(whole)
    away = serve(redirect(elsewhere.url()))
    copy_file(away.url(), tmp_path / "file", headers={"Authorization": "Bearer secret"})
    assert away.asked[0][1]["Authorization"] == "Bearer secret"
    assert "Authorization" not in elsewhere.asked[0][1]
    assert elsewhere.asked[0][1]["User-Agent"] == "guidance-train"

    def first_elsewhere(handler: Any) -> None:
        (redirect("/other") if handler.path == "/file" else whole)(handler)

    here = serve(first_elsewhere)
    copy_file(here.url(), tmp_path / "file", headers={"Authorization": "Bearer secret"})
    assert [path for path, _ in here.asked] == ["/file", "/other"]
    assert here.asked[1][1]["Authorization"] == "Bearer secret"


def test_a_redirect_leads_to_the_web_alone(serve, tmp_path):
    (tmp_path / "secret").write_text("secret")
    server = serve(redirect(f"file://{tmp_path}/secret"))
    with pytest.raises(HttpStatusError):
        copy_file(server.url(), tmp_path / "file")


def test_a_proxy_of_the_environment_is_asked(serve, tmp_path, monkeypatch):
    proxy = serve(whole)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "")
    copy_file("http://shards.invalid/file", tmp_path / "file")
    assert proxy.asked[0][0] == "http://shards.invalid/file"


def test_certificates_are_checked_against_those_of_the_environment(serve, tmp_path, monkeypatch):
    context, certificate = certified(tmp_path)
    server = serve(whole, context)
    remote = Remote(server.url(scheme="https").removesuffix("/file"))
    with pytest.raises(UserError, match=r"cannot be read: .*CERTIFICATE_VERIFY_FAILED"):
        remote.fetch("file", tmp_path / "file")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    remote.fetch("file", tmp_path / "file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_options_of_fsspec_go_to_its_client(serve, tmp_path):
    server = serve(whole)
    options = {"headers": {"Authorization": "Bearer secret"}, "client_kwargs": {"trust_env": False}}
    code = "import sys; from pathlib import Path\n"
    code += "from pipeline.storage.download import download_file\n"
    code += "print(download_file(sys.argv[1], Path(sys.argv[2])))"
    done = subprocess.run(
        [sys.executable, "-c", code, server.url(), tmp_path / "file"],
        env={"FSSPEC_HTTP": json.dumps(options)},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == hashlib.sha256(CONTENT).hexdigest(), done.stderr
    assert server.asked[-1][1]["Authorization"] == "Bearer secret"
    assert "guidance-train" not in server.asked[-1][1]["User-Agent"]
