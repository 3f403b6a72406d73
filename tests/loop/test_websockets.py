"""WebSockets that the application speaks itself, with Flask-Sock, in its own threads."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Flask
from flask_sock import Sock
from hypothesis import given
from hypothesis import strategies as st
from simple_websocket import ConnectionClosed, Server
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from websocket import ABNF, WebSocket, WebSocketBadStatusException, create_connection

from tests.support.hosts import Authority
from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.processes import Frontend
from threadbridge import HTTPServer
from threadbridge.crossing import socket_relay
from threadbridge.crossing.socket_relay import ClientFrames, SocketRelay
from threadbridge.loop.bridge import WEBSOCKET_LIBRARY
from threadbridge.telemetry.record import Record

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
# More than fits into all sockets on the way.
LARGE = 32 * 1024 * 1024
SOME = 1024 * 1024


class Site:
    """An application with WebSockets, and what its handlers have done."""

    def __init__(self) -> None:
        self.closed: list[int | None] = []
        self.cleaned_up = threading.Event()
        self.sent = threading.Event()
        self.application = Flask(__name__)
        sock = Sock(self.application)
        sock.route("/echo")(self.echo)
        sock.route("/goodbye", endpoint="goodbye")(lambda ws: ws.send("goodbye"))
        sock.route("/fail")(self.fail)
        sock.route("/pour/<int:size>")(self.pour)
        self.application.add_url_rule("/page", "page", lambda: "a page")

    def echo(self, ws: Server) -> None:
        """Send everything back."""
        try:
            while True:
                ws.send(ws.receive())
        except ConnectionClosed as closed:
            self.closed.append(closed.reason)
            self.cleaned_up.set()

    def fail(self, ws: Server) -> None:
        ws.send("about to fail")
        raise ValueError("the handler's own")

    def pour(self, ws: Server, size: int) -> None:
        ws.send(bytes(size))
        self.sent.set()


@contextmanager
def served(site: Site, **parameters: Any) -> Iterator[tuple[BridgeThread, list[Record]]]:
    records: list[Record] = []
    with BridgeThread(site.application, **{"threads": 1, "access_log": False, **parameters}) as server:
        server.bridge.telemetry.subscribe(records.extend)
        yield server, records


def endings(records: list[Record], number: int) -> list[tuple[int, str]]:
    """The statuses and endings of the requests so far, once there are so many."""
    wait_until(lambda: len(records) >= number, f"{number} requests are recorded")
    return [(each.status, each.ending) for each in records]


def opened(server: BridgeThread, path: str = "/echo", **options: Any) -> WebSocket:
    return create_connection(f"ws://127.0.0.1:{server.port}{path}", timeout=30, **options)


def raw(client: WebSocket) -> socket.socket:
    assert client.sock is not None
    return client.sock


@pytest.fixture(autouse=True)
def imported_websockets() -> None:
    """Applications with WebSockets have imported the library."""
    assert WEBSOCKET_LIBRARY in sys.modules


def test_messages_go_both_ways_and_take_no_thread_of_the_pages() -> None:
    site = Site()
    with served(site) as (server, records):
        clients = [opened(server) for _ in range(3)]
        data = os.urandom(3_000_000)
        for client in clients:
            client.send("hello")
            client.send_binary(data)
        assert server.request(path="/page")[1] == b"a page"
        for client in clients:
            assert client.recv() == "hello"
            assert client.recv() == data
            client.close()
        assert endings(records, 4) == [(200, "done"), *[(101, "done")] * 3]
        assert site.closed == [1000] * 3
        assert all(each.sent > len(data) and each.lane == "websocket" for each in records[1:])
        wait_until(lambda: not any(lane.busy for lane in server.bridge.lanes), "the threads are free")


def test_the_end_of_the_handler_closes_the_websocket_in_order() -> None:
    with served(Site()) as (server, records):
        client = opened(server, "/goodbye")
        assert client.recv() == "goodbye"
        opcode, frame = client.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (ABNF.OPCODE_CLOSE, b"\x03\xe8")
        assert raw(client).recv(1) == b""
        raw(client).close()
        wait_until(lambda: not server.bridge.servers[0].connections, "the connection is closed")
        assert endings(records, 1) == [(101, "done")]


def test_a_handler_that_fails_ends_its_websocket() -> None:
    with served(Site()) as (server, records):
        client = opened(server, "/fail")
        assert client.recv() == "about to fail"
        opcode, frame = client.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (ABNF.OPCODE_CLOSE, b"\x03\xf3")
        assert server.request(path="/page")[1] == b"a page"
        assert endings(records, 2) == [(101, "done"), (200, "done")]


def test_a_frame_right_behind_the_handshake_is_not_lost() -> None:
    with served(Site()) as (server, _), server.send(HANDSHAKE % b"/echo" + b"\x81\x85\0\0\0\0early") as client:
        received = b""
        while not received.endswith(b"\x81\x05early"):
            part = client.recv(4096)
            assert part, received
            received += part
        assert received.startswith(b"HTTP/1.1 101 ")


def test_an_application_may_answer_as_usual_instead() -> None:
    """Such as 404 or 403; the connection goes on."""
    site = Site()
    kept: list[dict[str, Any]] = []
    # As some frameworks do for a while.
    site.application.before_request(lambda: kept.append(flask.request.environ))
    with served(site) as (server, records):
        received = server.exchange(
            HANDSHAKE % b"/nothing" + b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert received.startswith(b"HTTP/1.1 404 ")
        assert received.endswith(b"a page")
        assert endings(records, 2) == [(404, "done"), (200, "done")]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            server.exchange(HANDSHAKE.replace(b"keep-alive", b"close") % b"/nothing")
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the sockets are closed")


def test_there_are_as_many_as_the_setting_allows() -> None:
    with served(Site(), websockets=2) as (server, _):
        clients = [opened(server) for _ in range(2)]
        with pytest.raises(WebSocketBadStatusException, match="503"):
            opened(server)
        assert server.request(path="/page")[1] == b"a page"
        clients.pop().close()
        wait_until(lambda: server.bridge.lane_choice.websockets.busy == 1, "a thread is free")  # type: ignore[union-attr]
        again = opened(server)
        again.send("again")
        assert again.recv() == "again"


def test_a_client_that_disappears_ends_the_handler_without_cancelling_it() -> None:
    """What the handler does afterwards, such as removing the client from a table, is not stopped."""
    site = Site()
    with served(site) as (server, records):
        client = opened(server)
        client.send("hello")
        assert client.recv() == "hello"
        [exchange] = server.bridge.exchanges.open
        reset(raw(client))
        assert site.cleaned_up.wait(30)
        assert endings(records, 1) == [(499, "abandoned")]
        # A cancellation would have been before this.
        server.bridge.shared.cancellation.threads.submit(int).result(30)
        assert not exchange.running.cancelled


def test_an_operator_can_end_a_websocket() -> None:
    site = Site()
    with served(site) as (server, _):
        client = opened(server)
        client.send("hello")
        assert client.recv() == "hello"
        [exchange] = server.bridge.exchanges.open
        server.loop.call_soon_threadsafe(server.bridge.exchanges.stop, exchange)
        assert raw(client).recv(1) == b""
        wait_until(lambda: bool(site.closed), "the handler has noticed")


def test_a_client_that_does_not_read_holds_up_its_handler_alone() -> None:
    site = Site()
    with served(site) as (server, _), server.send(HANDSHAKE % (b"/pour/%d" % LARGE)) as client:
        wait_until(lambda: any(each.relay and each.relay.sent for each in server.bridge.exchanges.open), "it pours")
        [exchange] = server.bridge.exchanges.open
        relay = exchange.relay
        assert relay is not None
        # What the client has not read is not taken from the handler.
        wait_until(lambda: server.bridge.spool.unread.taken > 0, "the client is waited for")
        assert server.request(path="/page")[1] == b"a page"
        assert not site.sent.is_set()
        assert relay.sent < LARGE
        assert server.bridge.spool.unread.taken < 1_000_000
        received = 0
        while received < LARGE:
            part = client.recv(1_000_000)
            assert part
            received += len(part)
        assert site.sent.wait(30)


def test_what_a_handler_sends_last_reaches_a_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it needs longer than the end of a WebSocket may take otherwise."""
    passed: list[SocketRelay] = []
    give_up = SocketRelay._give_up

    def noted(relay: SocketRelay) -> None:
        passed.append(relay)
        give_up(relay)

    monkeypatch.setattr(socket_relay, "CLOSING_TIME", 0.05)
    monkeypatch.setattr(SocketRelay, "_give_up", noted)
    site = Site()
    with served(site) as (server, _), socket.socket() as client:
        # Both take less than is still on the way when the handler has ended.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", server.port))
        wait_until(lambda: bool(server.bridge.servers[0].connections), "the server has accepted the connection")
        [connection] = server.bridge.servers[0].connections
        connection.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.sendall(HANDSHAKE % (b"/pour/%d" % SOME))
        received = 0
        while not site.sent.is_set():
            received += len(client.recv(4096))
        wait_until(lambda: len(passed) >= 2, "the time has passed twice")
        while part := client.recv(65536):
            received += len(part)
        assert received > SOME


def test_a_handler_that_does_not_read_holds_up_its_client_alone() -> None:
    """The reading thread of simple-websocket would hide it: here its socket is used directly."""
    may_read = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        taken: socket.socket = environ["werkzeug.socket"]
        taken.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        assert may_read.wait(30)
        received = 0
        while received < len(frame):
            received += len(taken.recv(1_000_000))
        taken.sendall(str(received).encode())
        return []

    frame = b"\x82\xff" + LARGE.to_bytes(8, "big") + bytes(4 + LARGE)
    with BridgeThread(application, threads=1, websockets=1) as server, server.send(HANDSHAKE % b"/") as client:
        assert client.recv(100).startswith(b"HTTP/1.1 101")
        sending = threading.Thread(target=client.sendall, args=(frame,))
        sending.start()
        [exchange] = server.bridge.exchanges.open
        wait_until(lambda: exchange.connection.stream.paused, "the client is not read")  # type: ignore[attr-defined]
        may_read.set()
        assert client.recv(100) == str(len(frame)).encode()
        sending.join()


def test_a_connection_error_ends_a_websocket_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """So Flask-SocketIO ends each of its WebSockets; before the handshake, it is an error like others."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/socket.io":
            ws = Server.accept(environ)
            ws.send("bye")
            ws.close()
        raise ConnectionError

    records: list[Record] = []
    with BridgeThread(application, threads=1, websockets=1, access_log=False) as server:
        server.bridge.telemetry.subscribe(records.extend)
        client = opened(server, "/socket.io")
        assert client.recv() == "bye"
        client.close()
        assert endings(records, 1) == [(101, "done")]
        assert not caplog.records
        with pytest.raises(WebSocketBadStatusException, match="500"):
            opened(server, "/other")
        assert "Traceback" in caplog.text


def test_an_application_that_raises_ends_its_websocket_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """As Flask does while it is debugged; otherwise it makes a response of the error."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        Server.accept(environ).send("about to fail")
        raise ValueError("the application's own")

    records: list[Record] = []
    with BridgeThread(application, threads=1, websockets=1, access_log=False) as server:
        server.bridge.telemetry.subscribe(records.extend)
        client = opened(server)
        assert client.recv() == "about to fail"
        opcode, frame = client.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (ABNF.OPCODE_CLOSE, b"\x03\xf3")
        assert endings(records, 1) == [(101, "done")]
    assert "the application's own" in caplog.text
    assert "failed to open a WebSocket" not in caplog.text


def test_a_handler_whose_client_left_before_it_had_its_socket_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    has_left = threading.Event()
    open_socket = SocketRelay.open

    def open_late(relay: SocketRelay) -> socket.socket:
        assert has_left.wait(30)
        return open_socket(relay)

    monkeypatch.setattr(SocketRelay, "open", open_late)
    with served(Site()) as (server, records):
        lane = server.bridge.lane_choice.websockets
        assert lane is not None
        client = server.send(HANDSHAKE % b"/echo")
        wait_until(lambda: lane.busy == 1, "the handler is about to begin")
        reset(client)
        assert endings(records, 1) == [(499, "abandoned")]
        has_left.set()
        wait_until(lambda: lane.busy == 0, "its thread is free")


@pytest.mark.parametrize(("server_class", "websockets"), [(HTTPServer, 0), (TornadoHTTPServer, 5)])
def test_without_the_socket_the_log_names_the_remedy(
    server_class: type[TornadoHTTPServer], websockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    with (
        caplog.at_level(logging.ERROR, "threadbridge"),
        BridgeThread(site.application, server_class, threads=1, websockets=websockets) as server,
        pytest.raises(WebSocketBadStatusException, match="500"),
    ):
        opened(server)
    [line] = [record.getMessage() for record in caplog.records if record.name == "threadbridge"]
    assert "failed to open a WebSocket: /echo" in line
    assert "set websockets=N" in line


APPLICATION = """
from flask import Flask
from flask_sock import Sock

app = Flask(__name__)

@Sock(app).route("/echo")
def echo(ws):
    while True:
        message = ws.receive()
        print("heard", message, flush=True)
        ws.send(message)
"""


def test_a_process_that_ends_closes_websockets_between_two_frames(tmp_path: Path) -> None:
    """Over TLS, and with the defaults: the library that the application uses says that there are WebSockets."""
    (tmp_path / "talk.py").write_text(APPLICATION)
    authority = Authority(tmp_path / "pki")
    certificate, key = authority.sign("localhost", "DNS:localhost")
    tls = (f"--certfile={certificate}", f"--keyfile={key}")
    command = ("-m", "threadbridge", "talk:app", "--port={port}", *tls)
    with Frontend(command, cwd=tmp_path) as server:
        context = ssl.create_default_context(cafile=str(authority.certificate))

        def connect() -> WebSocket:
            plain = socket.create_connection(("127.0.0.1", server.port), 30)
            encrypted = context.wrap_socket(plain, server_hostname="localhost")
            client = create_connection("wss://localhost/echo", socket=encrypted)
            client.settimeout(30)
            return client

        resting, sending = connect(), connect()
        for client in (resting, sending):
            client.send("hello")
            assert client.recv() == "hello"
        raw(sending).sendall(b"\x81\x84\0\0\0\0ha")
        server.process.send_signal(signal.SIGTERM)
        opcode, frame = resting.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (ABNF.OPCODE_CLOSE, b"\x03\xe9")
        raw(sending).sendall(b"lf" + b"\x81\x84\0\0\0\0lost")
        opcode, frame = sending.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (ABNF.OPCODE_CLOSE, b"\x03\xe9")
        # The client has answered each, and the server is the one that closes (RFC 6455, section 7.1.1).
        assert [raw(client).recv(1) for client in (resting, sending)] == [b"", b""]
        assert server.process.wait(30) == 0, server.output()
        assert "heard half" in server.output()
        assert "heard lost" not in server.output()
        assert "up to 100, each in a thread" in server.output()


def frames() -> st.SearchStrategy[bytes]:
    """A client's frames, with lengths in each of their three forms, and what may look like a head as payload."""

    def frame(first: int, size: int, mask: bytes) -> bytes:
        long = bytes([0x80 | 126]) + size.to_bytes(2, "big") if size < 65536 else b"\xff" + size.to_bytes(8, "big")
        return bytes([first]) + (bytes([0x80 | size]) if size < 126 else long) + mask + b"\x88" * size

    sizes = st.one_of(st.integers(0, 200), st.sampled_from([65535, 65536]))
    return st.builds(frame, st.sampled_from([0x81, 0x02, 0x88, 0x89, 0xC1]), sizes, st.binary(min_size=4, max_size=4))


@given(st.lists(frames(), max_size=4), st.lists(st.integers(1, 140) | st.integers(1, 100_000), max_size=20))
def test_the_end_of_each_frame_is_found_however_the_bytes_are_cut(made: list[bytes], sizes: list[int]) -> None:
    whole = b"".join(made)
    ends = [*itertools.accumulate(map(len, made))]
    finder, position = ClientFrames(), 0
    for size in [*sizes, len(whole)]:
        piece = whole[position : position + size]
        end = finder.feed(piece)
        expected = max((each - position for each in ends if position < each <= position + len(piece)), default=None)
        assert end == expected
        position += len(piece)
        assert finder.is_between == (position in (0, *ends))
