"""Files that the kernel sends (``os.sendfile``), at the pace of the client."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.httpserver import HTTPServer as TornadoHTTPServer

from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.site_process import Process
from threadbridge import Bridge, HTTPServer
from threadbridge.crossing.response_body import PIECE
from threadbridge.http.limits import Limits
from threadbridge.telemetry.record import Record

CONTENT = random.Random(3).randbytes(8_000_000)
GET = b"GET /file HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the pieces that ``os.sendfile`` has sent."""
    pieces: list[int] = []
    sendfile = os.sendfile

    def noting(out: int, descriptor: int, offset: int, count: int) -> int:
        pieces.append(0)
        pieces[-1] = sendfile(out, descriptor, offset, count)
        return pieces[-1]

    monkeypatch.setattr(os, "sendfile", noting)
    return pieces


def serving(path: Path) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        if environ["PATH_INFO"] != "/file":
            return [b"other"]
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](path.open("rb"))
        return wrapped

    return app


def read_all(client: socket.socket) -> bytes:
    with client:
        received = bytearray()
        while piece := client.recv(1 << 20):
            received += piece
        return bytes(received)


def slow_client(server: BridgeThread, sent: list[int]) -> socket.socket:
    """A client that has asked for the file and does not read, so that the server waits for it."""
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.connect(("127.0.0.1", server.port))
    client.sendall(GET)
    wait_until(lambda: bool(sent) and sent[-1] < PIECE, "the socket takes no more")
    return client


def open_files(path: Path) -> int:
    """How many descriptors of this process are the file's."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{entry}").startswith(str(path))
        except OSError:
            continue
    return found


def test_the_kernel_sends_it_and_the_connection_goes_on(path: Path, sent: list[int]) -> None:
    with BridgeThread(serving(path), threads=1) as server:
        both = (
            b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\nGET /other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        received = read_all(server.send(both))
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and rest.startswith(CONTENT)
        assert rest[len(CONTENT) :].startswith(b"HTTP/1.1 200") and rest.endswith(b"other")
        assert sum(sent) == len(CONTENT)
        wait_until(lambda: open_files(path) == 0, "the file is closed")


def test_what_is_not_in_memory_is_read_by_another_thread(
    path: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    pread = os.pread

    def noting(descriptor: int, count: int, offset: int) -> bytes:
        threads.add(threading.current_thread().name)
        return pread(descriptor, count, offset)

    def waiting(descriptor: int, buffers: object, offset: int, flags: int) -> int:
        # As the kernel does for a page that only the disk has.
        raise BlockingIOError

    monkeypatch.setattr(os, "pread", noting)
    monkeypatch.setattr(os, "preadv", waiting)
    with BridgeThread(serving(path), threads=1) as server:
        assert read_all(server.send(GET)).endswith(CONTENT)
    assert threads and all(name.startswith("threadbridge-disk") for name in threads)
    assert not sent


def test_file_systems_that_do_not_tell_are_read_by_another_thread(sent: list[int]) -> None:
    # That of /dev/shm is one, as long as its kernel does not learn it.
    path = Path(f"/dev/shm/threadbridge-test-{os.getpid()}")
    path.write_bytes(CONTENT)
    try:
        with path.open("rb") as file:
            try:
                os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
                tells = True
            except OSError:
                tells = False
        with BridgeThread(serving(path), threads=1) as server:
            assert read_all(server.send(GET)).endswith(CONTENT)
        assert tells == bool(sent)
    finally:
        path.unlink()


def test_a_part_of_a_file_that_has_lost_its_end_is_cut(
    path: Path, sent: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with BridgeThread(serving(path), threads=1) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        client = slow_client(server, sent)
        os.truncate(path, len(CONTENT) - 1000)
        received = read_all(client)
        wait_until(lambda: bool(records), "it is recorded")
        [record] = records
        assert record.ending == "failed" and record.sent == len(CONTENT) - 1000
        assert received.endswith(CONTENT[-2000:-1000])
        assert [message for message in caplog.messages if "ended 1000 bytes early" in message]
        wait_until(lambda: open_files(path) == 0, "the file is closed")
        assert server.request(path="/other")[1] == b"other"


def test_a_client_that_leaves_frees_all(path: Path, sent: list[int]) -> None:
    with BridgeThread(serving(path), threads=1) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        client = slow_client(server, sent)
        assert open_files(path) == 1
        reset(client)
        wait_until(lambda: bool(records), "it is recorded")
        assert records[0].ending == "abandoned" and records[0].status == 499
        wait_until(lambda: open_files(path) == 0, "the file is closed")


def test_a_client_that_does_not_read_is_cut(path: Path, sent: list[int]) -> None:
    def limited(bridge: Bridge) -> TornadoHTTPServer:
        return HTTPServer(bridge, limits=Limits(send_timeout=0.2))

    with BridgeThread(serving(path), limited, threads=1) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        client = slow_client(server, sent)
        wait_until(lambda: bool(records), "it is cut")
        assert (records[0].ending, records[0].status) == ("refused", 408)
        assert 0 < sum(sent) < len(CONTENT)
        # Nothing of it was in memory.
        assert server.bridge.spool.unread.taken == 0
        wait_until(lambda: open_files(path) == 0, "the file is closed")
        client.close()


def test_a_process_that_ends_sends_all_of_it(tmp_path: Path, path: Path) -> None:
    # The other tests of this file have asyncio's loop.
    with Process(tmp_path, "--port={port}", "--loop=uvloop", f"--static=/static/:{tmp_path}") as server:
        get = GET.replace(b"/file", b"/static/file")
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(3)]
        for client in clients:
            client.sendall(get)
        for client in clients:
            assert client.recv(8) == b"HTTP/1.1"
        server.process.terminate()
        for client in clients:
            assert read_all(client).endswith(CONTENT)
        assert server.process.wait(30) == 0


def test_over_tls_it_is_encrypted(tmp_path: Path, path: Path, sent: list[int]) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*new.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def over_tls(bridge: Bridge) -> TornadoHTTPServer:
        return HTTPServer(bridge, ssl_options=context)

    trusting = ssl.create_default_context(cafile=certificate)
    with BridgeThread(serving(path), over_tls, threads=1) as server:
        with trusting.wrap_socket(server.connect(), server_hostname="localhost") as client:
            client.sendall(GET)
            received = bytearray()
            while piece := client.recv(1 << 20):
                received += piece
        assert received.endswith(CONTENT) and not sent
