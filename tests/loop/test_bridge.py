"""The bridge: who runs where and when, and that every client gets its answer."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Bridge, Lane

PLAIN = [("Content-Type", "text/plain")]


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", PLAIN)
    return [b"hello"]


class Gate:
    """An application whose requests for /slow… wait until the test lets them go on."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.open = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.entered.append(environ["PATH_INFO"])
        if environ["PATH_INFO"].startswith("/slow"):
            assert self.open.wait(20)
        start_response("200 OK", PLAIN)
        return [environ["PATH_INFO"].encode()]


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def body_of(client: Any) -> bytes:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.read()


def test_the_loop_answers_while_every_thread_is_blocked() -> None:
    gate = Gate()
    lanes = [Lane("quick", "/quick", threads=1)]
    with BridgeThread(validator(gate), threads=2, lanes=lanes) as server:
        slow = [server.send(get(f"/slow{number}")) for number in range(5)]
        wait_until(lambda: len(gate.entered) == 2, "both threads at work")
        assert server.request(path="/quick")[1] == b"/quick"
        assert not gate.open.is_set() and len(gate.entered) == 3
        gate.open.set()
        assert [body_of(client) for client in slow] == [f"/slow{number}".encode() for number in range(5)]


def test_requests_run_in_the_order_they_came() -> None:
    gate = Gate()
    with BridgeThread(gate, threads=1) as server:
        clients = []
        for number in range(20):
            clients.append(server.send(get(f"/slow{number}")))
            wait_until(lambda count=number + 1: len(server.bridge.exchanges.open) == count, "the request has arrived")  # type: ignore[misc]
        gate.open.set()
        for client in clients:
            body_of(client)
        assert gate.entered == [f"/slow{number}" for number in range(20)]


def test_an_answered_request_does_not_wait_for_the_queue() -> None:
    turns = threading.Semaphore(0)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert turns.acquire(timeout=20)
        start_response("200 OK", PLAIN)
        return (part for part in (b"a", b"b"))

    with BridgeThread(app, threads=2) as server:
        clients = [server.send(get("/")) for _ in range(6)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 6, "all six have arrived")
        turns.release()
        # One application call has been let go on: its whole response arrives while five others run or wait.
        wait_until(lambda: len(server.bridge.exchanges.open) == 5, "one is answered")
        for _ in range(5):
            turns.release()
        assert [body_of(client) for client in clients] == [b"ab"] * 6


def test_a_queued_request_whose_client_left_is_not_run() -> None:
    gate = Gate()
    with BridgeThread(gate, threads=1) as server:
        running = server.send(get("/slow"))
        wait_until(lambda: gate.entered == ["/slow"], "the thread is taken")
        leaving = [server.send(get(f"/left{number}")) for number in range(10)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 11, "ten wait")
        for client in leaving:
            client.close()
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "ten are seen to have left")
        assert server.bridge.lanes[-1].queued == 0
        staying = server.send(get("/stays"))
        gate.open.set()
        assert (body_of(running), body_of(staying)) == (b"/slow", b"/stays")
        assert gate.entered == ["/slow", "/stays"]


def test_a_full_queue_refuses_at_once_and_unread() -> None:
    gate = Gate()
    with BridgeThread(gate, threads=1, queue=1) as server:
        clients = [server.send(get("/slow"))]
        wait_until(lambda: gate.entered == ["/slow"], "the thread is taken")
        clients.append(server.send(get("/slow")))
        wait_until(lambda: len(server.bridge.exchanges.open) == 2, "the queue is full")
        # The body that is announced is never sent: the answer does not wait for it.
        refused = server.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
        response = http.client.HTTPResponse(refused)
        response.begin()
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        refused.close()
        gate.open.set()
        assert [body_of(client) for client in clients] == [b"/slow", b"/slow"]
        assert server.request()[1] == b"/"


def raises(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    raise LookupError("in the call")


def raises_while_iterating(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    raise LookupError("while iterating")
    yield b""


def starts_no_response(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    return [b"hello"]


def returns_none(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)


def starts_twice(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", PLAIN)
    start_response("200 OK", PLAIN)
    return [b"hello"]


def returns_text(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
    start_response("200 OK", PLAIN)
    return ["hello"]


def answers(status: Any, headers: Any) -> Any:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response(status, headers)
        return [b"hello"]

    return app


@pytest.mark.parametrize(
    ("app", "logged"),
    [
        (raises, "LookupError: in the call"),
        (raises_while_iterating, "LookupError: while iterating"),
        (starts_no_response, "did not call start_response"),
        (returns_none, "returned None"),
        (starts_twice, "called twice"),
        (returns_text, "expected bytes"),
        (answers("200OK", PLAIN), "the status is '200OK'"),
        (answers("100 Continue", PLAIN), "the status is '100 Continue'"),
        (answers("200 OK\r\nX-Evil: 1", PLAIN), "the status is"),
        (answers(200, PLAIN), "the status is 200"),
        (answers("200 OK", [("X-Name", "a\r\nX-Evil: 1")]), "control character"),
        (answers("200 OK", [("X-Name", "a\nb")]), "control character"),
        (answers("200 OK", [("X-Name", "\u20ac")]), "beyond latin-1"),
        (answers("200 OK", [("X Name", "a")]), "not a token"),
        (answers("200 OK", [("X-Name", 5)]), "both str"),
        (answers("200 OK", [("Content-Length", "five")]), "expected digits"),
        (lambda environ, start_response: exit(3), "SystemExit"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_faulty_application_gives_500_and_a_logged_traceback(
    app: Any, logged: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with BridgeThread(app, threads=1) as server:
        for _ in range(2):
            response, body = server.request(method)
            assert response.status == 500
            assert "X-Evil" not in response.headers
            assert body.startswith(b"500 Internal Server Error") == (method == "GET")
    records = [record for record in caplog.records if record.name == "threadbridge"]
    assert len(records) == 2
    assert all(logged in (record.exc_text or "") for record in records)
    ids = [re.search(r"request (\S+) failed", record.getMessage()) for record in records]
    assert all(ids) and ids[0] != ids[1]


def test_an_exception_after_the_head_cuts_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"first"
        raise LookupError("too late")

    with BridgeThread(app, threads=1) as server, pytest.raises(http.client.IncompleteRead) as cut:
        server.request()
    assert cut.value.partial == b"first"
    assert "LookupError: too late" in caplog.text


def test_a_body_shorter_than_announced_is_seen_to_be_cut(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "10")])
        yield b"first"

    with BridgeThread(app, threads=1) as server, pytest.raises(http.client.IncompleteRead):
        server.request()
    assert "5 bytes shorter" in caplog.text


@pytest.mark.parametrize("chunks", [[b"hello world"], [b"hello", b" world"], [b"he", b"llo world"]])
def test_a_body_longer_than_announced_is_cut_to_it(chunks: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
        return (chunk for chunk in chunks)

    with BridgeThread(app, threads=1) as server:
        received = server.exchange(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/"))
    assert [answer.partition(b"\r\n\r\n")[2] for answer in received.split(b"HTTP/1.1 ")[1:]] == [b"hello", b"hello"]
    # The log has a line for the first only: the same fault comes again at once.
    assert caplog.text.count("longer than its Content-Length") == 1


def test_head_has_the_headers_and_no_body() -> None:
    with BridgeThread(hello, threads=1) as server:
        received = server.exchange(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/"))
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: 5" in head
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n") and rest.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_response_without_a_body_by_its_status(status: str) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response(status, [("ETag", '"1"')])
        return [b"not to be sent"]

    with BridgeThread(app, threads=1) as server:
        received = server.exchange(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/"))
    assert received.count(b"HTTP/1.1 " + status.encode()) == 2
    assert received.count(b'Etag: "1"') + received.count(b'ETag: "1"') == 2
    assert b"not to be sent" not in received and b"Transfer-Encoding" not in received
    assert b"Content-Length" not in received


def test_the_first_chunk_leaves_before_the_second_is_made() -> None:
    go_on = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"first"
        assert go_on.wait(20)
        yield b"second"

    with BridgeThread(validator(app), threads=1) as server:
        client = server.send(get("/"))
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.read(5) == b"first"
        go_on.set()
        assert response.read() == b"second"
        client.close()


def test_write_sends_at_once() -> None:
    go_on = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"first")
        assert go_on.wait(20)
        write(b"second")
        return [b"third"]

    with BridgeThread(app, threads=1) as server:
        client = server.send(get("/"))
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.read(5) == b"first"
        go_on.set()
        assert response.read() == b"secondthird"
        client.close()


class Endless:
    """A response without an end; counts what it has made and notes its closing."""

    def __init__(self) -> None:
        self.made = 0
        self.closed: list[str] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Endless:
        start_response("200 OK", PLAIN)
        return self

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> bytes:
        self.made += 1
        return bytes(65536)

    def close(self) -> None:
        self.closed.append(threading.current_thread().name)


def test_an_unread_stream_stops_and_its_client_s_leaving_closes_it() -> None:
    endless = Endless()
    with BridgeThread(endless, threads=1) as server:
        client = server.send(get("/"))
        made = -1

        def stands_still() -> bool:
            nonlocal made
            before, made = made, endless.made
            return made == before > 0 and server.bridge.lanes[-1].busy == 1

        wait_until(stands_still, "the application waits for the client")
        assert endless.closed == []
        client.close()
        wait_until(lambda: bool(endless.closed), "close() is called")
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
    assert len(endless.closed) == 1 and endless.closed[0].startswith("threadbridge-default")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "give pool= .* or threads="),
        ({"pool": "none"}, "give pool= .* or threads="),
        ({"threads": 0}, "threads=0: expected a number of at least 1"),
        ({"threads": 1, "queue": -1}, "queue=-1"),
        ({"pool": object()}, "is not a pool that can be guarded"),
        ({"threads": 1, "lanes": [Lane("a", threads=1), Lane("a", threads=1)]}, "two lanes are named 'a'"),
        ({"threads": 1, "lanes": [Lane("default", threads=1)]}, "two lanes are named 'default'"),
        ({"threads": 1, "xheaders": True, "trusted_proxies": ["proxy"]}, "expected an IP address"),
    ],
)
def test_a_bridge_that_cannot_be_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bridge(hello, **parameters)


@pytest.mark.parametrize(("name", "pattern"), [("a b", "/"), ("", "/"), ("a", "reports/*")])
def test_a_lane_that_cannot_be_is_refused(name: str, pattern: str) -> None:
    with pytest.raises(ValueError):
        Lane(name, pattern, threads=1)


def test_the_pool_lane_is_as_wide_as_the_pool() -> None:
    import MySQLdb
    from dbutils.pooled_db import PooledDB

    bridge = Bridge(hello, pool=PooledDB(MySQLdb, maxconnections=7))
    assert [(lane.name, lane.threads) for lane in bridge.lanes] == [("quick", 4), ("pool", 7)]
    unlimited = PooledDB(MySQLdb, maxconnections=0)
    with pytest.raises(ValueError, match="unlimited"):
        Bridge(hello, pool=unlimited)
    # The one that was not made has left the pool.
    assert Bridge(hello, pool=unlimited, threads=3).lanes[-1].threads == 3


@pytest.mark.parametrize(("threads", "connections"), [(3, 3), (7, 7), (20, 7)])
def test_threads_may_differ_from_connections(threads: int, connections: int) -> None:
    import MySQLdb
    from dbutils.pooled_db import PooledDB

    lane = Bridge(hello, pool=PooledDB(MySQLdb, maxconnections=7), threads=threads).lanes[-1]
    assert (lane.name, lane.threads, lane.connections) == ("pool", threads, connections)
