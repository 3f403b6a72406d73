"""Clients that send or read slowly: they are cut when that is too slow, and keep no thread from the others."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import HTTPServer
from threadbridge.crossing import response_body
from threadbridge.crossing.spool import BLOCK, PART_PER_CLIENT, BlockFile, Spool
from threadbridge.http.limits import Limits, Memory

PLAIN = [("Content-Type", "text/plain")]
MEGABYTE = 1024 * 1024
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


class SmallBuffers(HTTPServer):
    """The kernel keeps so little of a response that what the client does is soon seen."""

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        super()._handle_connection(connection, address)


def serving(app: Any, **limits: Any) -> BridgeThread:
    return BridgeThread(app, lambda bridge: SmallBuffers(bridge, limits=Limits(**limits)), threads=1)


def begin(server: BridgeThread, request: bytes = GET) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.settimeout(20)
    client.connect(("127.0.0.1", server.port))
    client.sendall(request)
    return client


def read_slowly(client: socket.socket, rate: int) -> bytes:
    """Read to the end, or until it is cut, so many bytes a second."""
    received = b""
    due = 0.0
    while True:
        try:
            part = client.recv(4096)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part
        # What the server did not have yet is not made up for.
        due = max(due, time.monotonic() - 0.1) + len(part) / rate
        time.sleep(max(0.0, due - time.monotonic()))


def send_slowly(client: socket.socket, data: bytes, rate: int) -> bytes:
    """Send bytes, so many a second, until there is an answer; give the answer."""
    client.settimeout(0.02)
    start = time.monotonic()
    sent = 0
    while True:
        try:
            return client.recv(65536)
        except TimeoutError:
            due = min(len(data), int((time.monotonic() - start) * rate)) - sent
            client.sendall(data[sent : sent + due])
            sent += due


def large(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    return (bytes(100_000) for _ in range(50))


# Too slow, in both directions.


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"send_timeout": 1.0, "min_rate": 10**7}, id="min_rate"),
        pytest.param({"send_timeout": 60.0, "min_rate": 1, "transfer_timeout": 1.0}, id="transfer_timeout"),
    ],
)
def test_a_response_that_is_read_without_pauses_but_too_slowly_is_cut(
    limits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(large, **limits) as server, begin(server) as client:
        assert 0 < len(read_slowly(client, 500_000)) < 5_000_000
        wait_until(lambda: not server.bridge.exchanges.open, "the request has ended")
        server.bridge.telemetry.flush()
        assert '"GET / HTTP/1.1" 408 ' in caplog.text and "ending=refused" in caplog.text
        assert "which reads too slowly" in caplog.text
        wait_until(lambda: server.bridge.spool.unread.taken == 0, "the memory is given back")


def test_a_slow_reader_that_never_pauses_gets_every_byte() -> None:
    body = random.Random(1).randbytes(400_000)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [body]

    # Each piece that is written takes longer than the longest pause.
    with serving(app, send_timeout=1.2, min_rate=1000) as server, begin(server) as client:
        assert read_slowly(client, 100_000).partition(b"\r\n\r\n")[2] == body
        assert server.bridge.spool.unread.taken == 0


def test_a_slow_application_costs_its_client_nothing() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        for _ in range(6):
            time.sleep(0.5)
            # More than the kernel takes at once.
            yield bytes(50_000)
        # Long enough for the server to look at it.
        yield bytes(500_000)

    # The client takes 2 s of 5 s.
    with serving(app, min_rate=1000, transfer_timeout=3.5) as server, begin(server) as client:
        assert len(read_slowly(client, 400_000)) > 800_000


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"body_timeout": 1.0, "min_rate": 10**7}, id="min_rate"),
        pytest.param({"body_timeout": 60.0, "min_rate": 1, "transfer_timeout": 1.0}, id="transfer_timeout"),
    ],
)
def test_a_body_that_comes_without_pauses_but_too_slowly_is_answered_408(limits: dict[str, Any]) -> None:
    with serving(large, **limits) as server, begin(server, POST % 6000) as client:
        assert send_slowly(client, bytes(6000), 1000).startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_that_never_pauses_arrives() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [b"%d" % len(environ["wsgi.input"].read(3000))]

    with serving(app, body_timeout=1.2, min_rate=500) as server, begin(server, POST % 3000) as client:
        assert send_slowly(client, bytes(3000), 1000).endswith(b"\r\n\r\n3000")


# The threads.


class Downloads:
    """Streams ``size`` bytes, or without an end; /quick is answered at once."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.ended = 0
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return [b"quick"] if environ["PATH_INFO"] == "/quick" else self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        try:
            left = self.size
            while left is None or left > 0:
                yield bytes(100_000)
                left = None if left is None else left - 100_000
        finally:
            with self._lock:
                self.ended += 1


def client_of_header(headers: Any, address: str) -> str:
    return str(headers.get("X-Client", address))


def test_four_readers_that_do_not_read_keep_no_thread() -> None:
    app = Downloads(20_000_000)
    with BridgeThread(app, threads=4) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.send(GET)) for _ in range(4)]
        wait_until(lambda: app.ended == 4, "all four are made, though none is read", 30)
        assert server.request(path="/quick")[1] == b"quick"
        wait_until(lambda: len(server.bridge.exchanges.open) == 4, "theirs go on")
        taken = server.bridge.spool.taken
        assert 4 * 10_000_000 < taken <= 4 * 20_000_000 + 4 * BLOCK
        for client in clients:
            client.close()
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")


@pytest.mark.parametrize("spool_size", [0, 4 * MEGABYTE], ids=["no disk", "its part of the disk is full"])
def test_beyond_the_disk_space_readers_are_cut_when_others_wait_for_their_threads(
    spool_size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(response_body, "THREAD_TIME", 0.3)
    monkeypatch.setattr(response_body, "THREAD_RATE", 10**9)
    monkeypatch.setattr(response_body, "LOOK_INTERVAL", 0.05)
    app = Downloads(None)
    with BridgeThread(app, threads=4, spool_size=spool_size) as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(server.send(GET))
        wait_until(lambda: len(list(server.bridge.exchanges.open)) == 4, "all are there")
        channels = list(server.bridge.exchanges.open)
        wait_until(lambda: all(waited(each) > 0.6 for each in channels), "all have kept their threads waiting", 30)
        # Nobody needs their threads.
        assert app.ended == 0
        assert server.request(path="/quick")[1] == b"quick"
        wait_until(lambda: 1 <= app.ended <= 4, "its application is told")
        server.bridge.telemetry.flush()
        assert '"GET / HTTP/1.1" 408 ' in caplog.text


def waited(exchange: Any) -> float:
    channel = exchange._channel
    return 0.0 if channel is None else float(channel._waited)


def test_a_reader_that_is_quick_enough_keeps_its_thread_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_body, "THREAD_TIME", 0.3)
    monkeypatch.setattr(response_body, "THREAD_RATE", 100_000)
    monkeypatch.setattr(response_body, "LOOK_INTERVAL", 0.05)
    app = Downloads(2_000_000)
    with BridgeThread(app, SmallBuffers, threads=1, spool_size=0) as server, begin(server) as client:
        answers: list[bytes] = []
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "it runs")
        other = threading.Thread(target=lambda: answers.append(server.request(path="/quick")[1]))
        other.start()
        assert len(read_slowly(client, 1_500_000)) > 2_000_000
        other.join()
        assert answers == [b"quick"] and app.ended == 1


def test_one_client_takes_its_part_of_the_disk_and_no_more() -> None:
    app = Downloads(18_000_000)
    quota = 20 * MEGABYTE
    with (
        BridgeThread(app, threads=2, spool_size=quota * PART_PER_CLIENT, client_key=client_of_header) as server,
        ExitStack() as stack,
    ):
        greedy = GET.replace(b"Host", b"X-Client: greedy\r\nHost")
        stack.enter_context(server.send(greedy))
        wait_until(lambda: app.ended == 1, "the first is on the disk")
        stack.enter_context(server.send(greedy))
        wait_until(lambda: server.bridge.spool.taken == quota, "its part is full")
        stack.enter_context(server.send(GET.replace(b"Host", b"X-Client: other\r\nHost")))
        wait_until(lambda: app.ended == 2, "another's goes to the disk")
        # So do uploads.
        connection = stack.enter_context(
            server.send(b"POST / HTTP/1.1\r\nHost: a\r\nX-Client: greedy\r\nContent-Length: 3000000\r\n\r\n")
        )
        connection.sendall(bytes(2_000_000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 507 ")


def test_with_little_memory_left_responses_wait_on_the_disk() -> None:
    body = bytes(MEGABYTE)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [body]

    with BridgeThread(app, SmallBuffers, threads=1, memory_size=MEGABYTE) as server, ExitStack() as stack:
        clients = [stack.enter_context(begin(server)) for _ in range(8)]
        wait_until(lambda: server.bridge.spool.taken >= 5 * MEGABYTE, "most are on the disk")
        assert server.bridge.spool.unread.taken < 3 * MEGABYTE
        assert server.bridge.spool.memory.taken == 0
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MEGABYTE)
            assert read_slowly(client, 10**9).partition(b"\r\n\r\n")[2] == body
        wait_until(lambda: server.bridge.spool.taken == server.bridge.spool.unread.taken == 0, "all is given back")


# The file.


@pytest.mark.parametrize("seed", range(5))
def test_a_file_gives_what_it_was_given_and_uses_its_space_again(seed: int) -> None:
    source = random.Random(seed)
    limit = 8 * BLOCK
    spool = Spool(limit * PART_PER_CLIENT, Memory(), Memory())
    file = BlockFile(spool, "client")
    expected, put, took = bytearray(), 0, 0
    for _ in range(400):
        data = source.randbytes(source.randint(1, BLOCK))
        if file.append(data):
            expected += data
            put += len(data)
        else:
            assert len(expected) + len(data) > limit - 2 * BLOCK
        for _ in range(source.randint(0, 3)):
            if expected:
                piece = file.take(source.randint(1, BLOCK))
                assert piece and piece == expected[: len(piece)]
                del expected[: len(piece)]
                took += len(piece)
    assert put > 2 * limit and spool.taken <= limit
    file.close()
    assert spool.taken == 0
