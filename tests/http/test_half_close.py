"""Clients that close only their own side of the connection: they have asked, and still read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, reset, wait_until
from threadbridge.crossing.request_body import MEMORY_LIMIT
from threadbridge.crossing.spool import DISK_THREADS
from threadbridge.http.limits import LINGER_PAUSE


class Application:
    """Answers when it is told to, with the body that it was sent."""

    def __init__(self) -> None:
        self.entered = 0
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.entered += 1
        body: bytes = environ["wsgi.input"].read()
        assert self.go_on.wait(30)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"answer to ", body or b"nothing"]


@pytest.fixture
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.go_on.set()


def request(method: str, body: bytes = b"") -> bytes:
    return f"{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answer(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("size", [4, 3_000_000])
def test_a_request_that_is_not_safe_is_answered(application: Application, method: str, size: int) -> None:
    with BridgeThread(application, threads=2) as server:
        client = server.send(request(method, b"x" * size))
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: application.entered == 1, "it runs")
        [http_server] = server.bridge.servers
        # A new connection is watched only some milliseconds after its first request.
        wait_until(
            lambda: all(each._current and each._current.closes for each in http_server.connections), "it is seen"
        )
        application.go_on.set()
        head, _, body = answer(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") and b"\r\nConnection: close" in head
        assert body == b"answer to " + b"x" * size
        wait_until(lambda: not server.bridge.exchanges.open, "it has ended")
        # Nothing is waited for: the client has sent its last byte.
        wait_until(lambda: len(http_server.connections) == 0, "the connection is closed", LINGER_PAUSE / 2)
    assert application.entered == 1


def test_one_whose_body_is_on_its_way_to_the_disk_is_answered(application: Application) -> None:
    application.go_on.set()
    with BridgeThread(application, threads=2) as server:
        disk = threading.Event()
        for _ in range(DISK_THREADS):
            server.bridge.spool.threads.submit(disk.wait)
        # With its last byte it is complete, and too large for memory.
        client = server.send(request("POST", MEMORY_LIMIT * b"x"))
        client.shutdown(socket.SHUT_WR)
        # By the end of these the loop has seen both.
        for _ in range(3):
            server.request()
        disk.set()
        assert answer(client).endswith(b"answer to " + MEMORY_LIMIT * b"x")


def test_one_that_waits_for_a_thread_is_answered(application: Application) -> None:
    with BridgeThread(application, threads=1) as server:
        clients = [server.send(request("POST", b"%d" % number)) for number in range(3)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 3, "all are there")
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        application.go_on.set()
        assert [answer(client)[-11:] for client in clients] == [b"answer to %d" % number for number in range(3)]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_safe_request_is_cancelled(application: Application, method: str) -> None:
    with BridgeThread(application, threads=1) as server:
        with server.send(request(method)) as client:
            wait_until(lambda: application.entered == 1, "it runs")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
        wait_until(lambda: not server.bridge.exchanges.open, "nobody waits for it")
        application.go_on.set()


@pytest.mark.parametrize(("method", "cancel", "is_answered"), [("GET", "none", True), ("POST", "all", False)])
def test_what_is_not_cancelled_is_answered(
    application: Application, method: str, cancel: str, is_answered: bool
) -> None:
    with BridgeThread(application, threads=1, cancel=cancel) as server, server.send(request(method)) as client:
        wait_until(lambda: application.entered == 1, "it runs")
        client.shutdown(socket.SHUT_WR)
        if not is_answered:
            assert client.recv(100) == b""
        application.go_on.set()
        assert answer(client).endswith(b"nothing") == is_answered


def test_a_request_that_is_not_complete_is_not_run(application: Application) -> None:
    with BridgeThread(application, threads=1) as server, server.send(request("POST", b"body")[:-1]) as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert application.entered == 0


def test_a_client_that_resets_the_connection_has_left(application: Application) -> None:
    with BridgeThread(application, threads=1) as server:
        client = server.send(request("POST"))
        wait_until(lambda: application.entered == 1, "it runs")
        reset(client)
        wait_until(lambda: not server.bridge.exchanges.open, "that is noticed")
        application.go_on.set()
