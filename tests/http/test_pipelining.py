"""What a client sends behind a request that is still being answered."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Bridge, HTTPServer
from threadbridge.crossing.request_body import MEMORY_LIMIT
from threadbridge.crossing.spool import DISK_THREADS
from threadbridge.http.limits import READ_SIZE
from threadbridge.http.server_connection import HTTP1ServerConnection


class Held:
    """A server whose application answers when it is let go on, and its one client."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = threading.Event()
        self._http: HTTPServer

    def application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.running.set()
        assert self.go_on.wait(20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    def make_server(self, bridge: Bridge) -> HTTPServer:
        self._http = HTTPServer(bridge)
        return self._http

    @property
    def connection(self) -> HTTP1ServerConnection:
        [connection] = self._http.connections
        return connection


@pytest.fixture
def held() -> Held:
    return Held()


def read_to_end(client: socket.socket) -> bytes:
    received = bytearray()
    while part := client.recv(65536):
        received += part
    return bytes(received)


def test_no_more_than_a_read_or_two_waits_in_the_server(held: Held) -> None:
    count = 5000
    requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" % number for number in range(count)]
    requests[-1] = requests[-1].replace(b"keep-alive", b"close")
    with BridgeThread(held.application, held.make_server, threads=1) as server, server.connect() as client:
        client.settimeout(30)
        sender = threading.Thread(target=client.sendall, args=(b"".join(requests),))
        sender.start()
        assert held.running.wait(30)
        wait_until(lambda: held.connection.stream.paused, "the rest waits in the kernel")
        assert held.connection._parser.unparsed <= 2 * READ_SIZE
        held.go_on.set()
        received = read_to_end(client)
        sender.join()
    bodies = [response.partition(b"\r\n\r\n")[2] for response in received.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"/%d" % number for number in range(count)]


def test_what_comes_behind_the_last_request_costs_no_answer(held: Held) -> None:
    with BridgeThread(held.application, held.make_server, threads=1) as server, server.connect() as client:
        client.settimeout(30)
        client.sendall(b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert held.running.wait(30)
        # More than the server reads before it answers: closed with that unread, the connection would be reset.
        client.sendall(b"garbage\r\n" * 20_000)
        wait_until(lambda: held.connection.stream.paused, "the rest waits in the kernel")
        held.go_on.set()
        assert read_to_end(client).endswith(b"\r\n\r\n/last")


@pytest.mark.parametrize("first", [b"", b"GET /ne"], ids=["none of it is read", "the beginning is read"])
def test_what_comes_just_before_the_end_does_not_reset_the_connection(held: Held, first: bytes) -> None:
    more_has_come = threading.Event()
    with BridgeThread(held.application, held.make_server, threads=1) as server, server.connect() as client:
        client.settimeout(30)
        client.sendall(b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + first)
        assert held.running.wait(30)
        # The answer reaches the loop before it looks at its sockets again.
        server.loop.call_soon_threadsafe(more_has_come.wait, 10)
        held.go_on.set()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the answer is on its way to the loop")
        client.sendall(b"xt HTTP/1.1\r\n")
        more_has_come.set()
        assert read_to_end(client).endswith(b"\r\n\r\n/last")


def test_who_leaves_is_noticed_also_when_the_end_of_the_body_came_while_the_disk_was_busy(held: Held) -> None:
    disk_is_free = threading.Event()
    body = bytes(MEMORY_LIMIT + 100)
    with (
        BridgeThread(held.application, held.make_server, threads=1, cancel="all") as server,
        server.connect() as client,
    ):
        for _ in range(DISK_THREADS):
            server.bridge.spool.threads.submit(disk_is_free.wait, 20)
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-10])
        wait_until(lambda: any(each._paused for each in held._http.connections), "the body waits for the disk")
        client.sendall(body[-10:])
        wait_until(lambda: held.connection.stream.paused, "its end waits too")
        disk_is_free.set()
        assert held.running.wait(30)
        client.close()
        wait_until(lambda: not server.bridge.exchanges.open, "it is noticed that the client has left")
        held.go_on.set()
