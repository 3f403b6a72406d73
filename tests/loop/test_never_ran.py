"""Each 503 of the server says whether the request has run, so that a proxy may send it elsewhere; others do not."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Bridge, HTTPServer
from threadbridge.http.limits import Limits
from threadbridge.loop.exchanges import Exchanges

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Application:
    """Notes its calls; /slow waits for the gate, /work takes 0.1 s, /503 and /outage fail."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls: list[str] = []
        self.pool = PooledDB(MySQLdb, maxconnections=1, unix_socket="/nowhere/mariadb.sock")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.calls.append(path)
        if path == "/slow":
            assert self.gate.wait(30)
        elif path == "/work":
            time.sleep(0.1)
        elif path == "/outage":
            self.pool.connection()
        start_response("503 Full" if path == "/503" else "200 OK", [("Content-Type", "text/plain")])
        return [b"done"]


@pytest.fixture
def app() -> Application:
    return Application()


@contextmanager
def full(app: Application, **settings: Any) -> Iterator[BridgeThread]:
    """A bridge whose only thread is busy."""
    with BridgeThread(app, threads=1, **settings) as server:
        client = server.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: app.calls == ["/slow"], "it runs")
        yield server
        app.gate.set()
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()


def answer(client: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(client)
    response.begin()
    response.read()
    return response


def assert_never_ran(response: http.client.HTTPResponse) -> None:
    assert (response.status, response.headers.get_all("X-Threadbridge-Ran")) == (503, ["no"])
    assert int(response.headers["Retry-After"]) >= 1


def test_a_full_queue(app: Application) -> None:
    with full(app, queue=0) as server:
        assert_never_ran(server.request("POST", body=b"a")[0])
    assert app.calls == ["/slow"]


def test_a_wait_that_was_too_long(app: Application) -> None:
    with full(app, queue_timeout=0.3) as server:
        assert_never_ran(server.request("POST", body=b"a")[0])
    assert app.calls == ["/slow"]


def test_a_wait_that_would_be_too_long(app: Application) -> None:
    with BridgeThread(app, threads=1, queue_timeout=1.0) as server, ExitStack() as stack:
        for _ in range(8):
            # It is learned that these take 0.1 s.
            server.request("POST", "/work", b"a")
        slow = stack.enter_context(server.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"))
        wait_until(lambda: app.calls[-1] == "/slow", "it runs")
        waiting = [stack.enter_context(server.connect()) for _ in range(30)]
        for client in waiting:
            client.sendall(b"POST /work HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na")
        wait_until(lambda: server.bridge.lanes[0].refused_early > 0, "the last ones would wait for too long")
        for client in waiting:
            # The others have waited for a second.
            assert_never_ran(answer(client))
        app.gate.set()
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
    assert app.calls == ["/work"] * 8 + ["/slow"]


@pytest.mark.parametrize("end", [Exchanges.stop, lambda exchanges, each: exchanges.abandon([each])])
def test_an_end_while_it_waits(app: Application, end: Any) -> None:
    """That of an operator, and that of a process whose grace is over."""
    with full(app) as server, server.send(GET) as client:
        exchanges = server.bridge.exchanges
        wait_until(lambda: server.bridge.lanes[0].queued == 1, "it waits")

        def stop() -> None:
            [waiting] = [each for each in exchanges.open if each.start_line.path == "/"]
            end(exchanges, waiting)

        server.loop.call_soon_threadsafe(stop)
        assert_never_ran(answer(client))
    assert app.calls == ["/slow"]


def test_too_many_connections(app: Application) -> None:
    def make(bridge: Bridge) -> HTTPServer:
        return HTTPServer(bridge, limits=Limits(max_connections=1))

    with full(app, make_server=make) as server, server.send(GET) as client:
        assert_never_ran(answer(client))
    assert app.calls == ["/slow"]


def test_too_little_memory_for_what_arrives(app: Application) -> None:
    with BridgeThread(app, threads=1, memory_size=32 * 1024) as server:
        client = server.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nX-Long: " + b"x" * 40_000)
        assert_never_ran(answer(client))
        client.close()
    assert app.calls == []


def test_what_the_application_refuses_is_its_own_affair(app: Application) -> None:
    with BridgeThread(app, threads=1) as server:
        response, _ = server.request("POST", "/503", b"a")
        assert response.status == 503 and "X-Threadbridge-Ran" not in response.headers
    assert app.calls == ["/503"]


def test_an_outage_of_the_database_is_no_sign_that_nothing_has_run(app: Application) -> None:
    with BridgeThread(app, pool=app.pool) as server:
        response, _ = server.request("POST", "/outage", b"a")
        assert response.status == 503 and "X-Threadbridge-Ran" not in response.headers
        assert response.headers["Retry-After"] == "1"
    assert app.calls == ["/outage"]
