"""A remote lane's requests on their way to other hosts and back: framing, failures, and what is never repeated."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.web import Application, FallbackHandler

from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.processes import free_port
from tests.support.raw_server import OK, RawServer, answering, whole_request
from threadbridge import Bridge, Lane, current
from threadbridge.common import forks
from threadbridge.http.intermediary import SENT_BY_LANE, TIME_LEFT
from threadbridge.settings.table import BridgeSettings
from threadbridge.telemetry.record import Record

NEVER_RAN = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nX-Threadbridge-Ran: no\r\nContent-Length: 4\r\n\r\nfull"
)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answers with the variables of the request and its body's length; what /local asks runs here."""
    body = environ["wsgi.input"].read()
    shown = {name: value for name, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [json.dumps({**shown, "length": len(body)}).encode()]


@contextmanager
def frontend(*urls: str, **settings: Any) -> Iterator[BridgeThread]:
    """A bridge with a remote lane for /far/ at these URLs; ``records`` are those of its requests."""
    lanes = [Lane("far", "/far/*", upstream=urls, queue=settings.pop("room", 1000))]
    with BridgeThread(application, threads=2, lanes=lanes, **settings) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        server.records = records  # type: ignore[attr-defined]
        yield server


def record_of(server: BridgeThread) -> Record:
    records: list[Record] = server.records  # type: ignore[attr-defined]
    wait_until(lambda: bool(records), "a record")
    return records.pop(0)


def hosts(server: BridgeThread) -> list[Any]:
    [upstream] = server.bridge.forwarding.upstreams.values()
    return upstream.hosts


# What another bridge gets.


def test_another_host_sees_the_request_as_this_one_would() -> None:
    with BridgeThread(application, threads=1, xheaders=True) as far, frontend(f"http://127.0.0.1:{far.port}") as near:
        headers = {"Host": "shop.example:81", "X-Real-IP": "6.6.6.6", "X-Request-ID": "made-up", "Cookie": "a=b; c=d"}
        response, body = near.request("GET", "/far/%C3%A9?a=%20b&c", headers=headers)
        seen = json.loads(body)
        assert response.status == 200
        assert seen["REQUEST_URI"] == "/far/%C3%A9?a=%20b&c"
        assert seen["HTTP_HOST"] == seen["HTTP_X_FORWARDED_HOST"] == "shop.example:81"
        assert seen["REMOTE_ADDR"] == "127.0.0.1" and seen["wsgi.url_scheme"] == "http"
        assert seen["HTTP_COOKIE"] == "a=b; c=d"
        assert seen["HTTP_VIA"] == "1.1 threadbridge"
        assert "HTTP_X_REAL_IP" not in seen
        assert response.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
        record = record_of(near)
        assert record.id == response.headers["X-Request-ID"] == seen["HTTP_X_REQUEST_ID"] != "made-up"
        assert (record.lane, record.upstream, record.upstream_error) == ("far", f"http://127.0.0.1:{far.port}", "")
        assert (record.status, record.ending) == (200, "done") and record.has_run
        # A request of another lane runs here.
        near.request("GET", "/near")
        assert (record := record_of(near)).lane == "default" and record.upstream == ""


def test_what_a_trusted_proxy_says_of_the_client_is_passed_on() -> None:
    with (
        BridgeThread(application, threads=1, xheaders=True) as far,
        frontend(f"http://127.0.0.1:{far.port}", xheaders=True) as near,
    ):
        headers = {"X-Real-IP": "192.0.2.7", "X-Scheme": "https", "X-Request-ID": "of-nginx"}
        seen = json.loads(near.request("GET", "/far/", headers=headers)[1])
        assert seen["REMOTE_ADDR"] == "192.0.2.7" and seen["wsgi.url_scheme"] == "https"
        assert seen["HTTP_X_REQUEST_ID"] == "of-nginx"
        # In turn on the other host, too.
        assert {record.id for record in [record_of(near)]} == {"of-nginx"}


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_a_body_arrives_whole_with_its_length(size: int) -> None:
    with BridgeThread(application, threads=1) as far, frontend(f"http://127.0.0.1:{far.port}") as near:
        for _ in range(2):
            seen = json.loads(near.request("POST", "/far/", body=b"x" * size)[1])
            assert seen["length"] == int(seen["CONTENT_LENGTH"]) == size
        chunked = b"POST /far/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        answer = near.exchange(chunked + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["CONTENT_LENGTH"] == "5"


def test_fields_of_the_connection_are_not_passed_on_either_way() -> None:
    response = (
        b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: X-Mine, keep-alive\r\nX-Mine: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTrailer: A\r\n"
        b"X-Yours: 2\r\nServer: other\r\n\r\nok"
    )
    with RawServer(answering(response)) as far, frontend(far.url) as near:
        answer = near.exchange(
            b"POST /far/ HTTP/1.1\r\nHost: a\r\nConnection: X-Mine, close, Upgrade\r\nX-Mine: 1\r\nX-Yours: 2\r\n"
            b"Keep-Alive: timeout=5\r\nTE: trailers\r\nTrailer: A\r\nUpgrade: websocket\r\n"
            b"Proxy-Authorization: Basic x\r\nExpect: 100-continue\r\nX-Forwarded-For: 6.6.6.6\r\n"
            b"X-Threadbridge-Lane: mine\r\nContent-Length: 2\r\n\r\nhi"
        )
        assert answer.startswith(b"HTTP/1.1 200 Fine\r\n")
        head = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        names = [line.partition(b":")[0] for line in head[1:]]
        assert names == [b"x-yours", b"server", b"date", b"content-length", b"connection"]
        assert b"connection: close" in head
        [request] = far.requests
        fields = dict(line.split(": ", 1) for line in request.decode().partition("\r\n\r\n")[0].split("\r\n")[1:])
        assert int(fields.pop(TIME_LEFT)) in range(170_000, 180_001)
        assert fields.pop("X-Request-ID")
        assert fields == {
            "Host": "a",
            "X-Yours": "2",
            "Content-Length": "2",
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": "a",
            "Via": "1.1 threadbridge",
            SENT_BY_LANE: "far",
        }
        assert request.endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize(
    ("sent", "method", "head", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", "Content-Length: 5", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", "GET", "Content-Length: 5", b""),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "GET", "", b""),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "GET",
            "Content-Length: 2",
            b"ok",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "GET", "chunked", b"ok"),
    ],
)
def test_special_responses_keep_their_framing(sent: bytes, method: str, head: str, body: bytes) -> None:
    with RawServer(answering(sent)) as far, frontend(far.url) as near:
        for _ in range(2):
            response, received = near.request(method, "/far/")
            assert received == body
            assert head in f"{response.headers}" and ("Content-Length" in f"{response.headers}") == ("Length" in head)
        # The framing was understood: one connection has carried both.
        assert far.connections == 1


def test_a_body_that_ends_with_the_connection_is_complete() -> None:
    sent = answering(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", keeps=False)
    with RawServer(sent) as far, frontend(far.url) as near:
        for _ in range(2):
            assert near.request("GET", "/far/")[1] == b"hello"
        wait_until(lambda: hosts(near)[0].connections == 0, "they are closed")


def test_the_deadline_is_what_is_left_of_it_and_only_trusted_proxies_shorten_it() -> None:
    found: list[float] = []

    def note(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        deadline = current().deadline
        assert deadline is not None
        found.append(deadline - time.monotonic())
        start_response("200 OK", [])
        return []

    with BridgeThread(note, threads=1, xheaders=True) as far:
        with frontend(f"http://127.0.0.1:{far.port}", deadline=20.0) as near:
            near.request("GET", "/far/")
        assert 15 < found.pop() < 20
        far.request("GET", "/", headers={TIME_LEFT: "5000"})
        assert 3 < found.pop() < 5
        # It never gets longer, and nonsense does not count.
        for nonsense in ("999999999", "-1", "five", "1e3", "", "9" * 400):
            far.request("GET", "/", headers={TIME_LEFT: nonsense})
            assert 170 < found.pop() < 180
    with BridgeThread(note, threads=1) as far:
        far.request("GET", "/", headers={TIME_LEFT: "5000"})
        assert 170 < found.pop() < 180


# Failures.


BAD = {
    "no HTTP": (b"hello\r\n\r\n", "http_protocol_error"),
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "http_protocol_error",
    ),
    "another protocol": (b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "http_protocol_error"),
    "a head without end": (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "http_protocol_error"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "connection_terminated"),
    "nothing": (b"", "connection_terminated"),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("sent", "error"), BAD.values(), ids=BAD)
def test_a_bad_answer_gives_502_and_is_not_repeated(
    sent: bytes, error: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        RawServer(answering(sent, keeps=False)) as far,
        RawServer(answering(OK)) as other,
        frontend(far.url, other.url) as near,
    ):
        # Whose turn it is does not matter.
        answers = [near.request(method, "/far/")[0] for _ in range(2)]
        [bad] = [answer for answer in answers if answer.status == 502]
        assert bad.headers["Proxy-Status"] == f"threadbridge; error={error}"
        assert len(far.requests) == len(other.requests) == 1
        [record] = [found for found in (record_of(near), record_of(near)) if found.status == 502]
        assert (record.ending, record.upstream, record.upstream_error) == ("failed", far.url, error)
        assert f"may have run on {far.url}" in caplog.text
        # It is left out.
        assert near.request(method, "/far/")[0].status == 200
        assert len(far.requests) == 1
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nZ",
    ],
)
def test_a_response_cut_short_is_cut_short_for_the_client(sent: bytes) -> None:
    with RawServer(answering(sent, keeps=False)) as far, frontend(far.url) as near:
        answer = near.exchange(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        # Neither the length nor the last chunk is reached.
        assert b"half" in answer and not answer.endswith((b"0\r\n\r\n", b"half" * 2))
        assert (record := record_of(near)).ending == "failed" and record.upstream_error
        assert len(far.requests) == 1


def test_no_host_can_be_reached() -> None:
    with frontend(f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}") as near:
        for _ in range(2):
            response, _ = near.request("POST", "/far/", body=b"x")
            assert response.status == 503 and response.headers["X-Threadbridge-Ran"] == "no"
            assert int(response.headers["Retry-After"]) >= 1
            assert response.headers["Proxy-Status"] == "threadbridge; error=destination_unavailable"
            record = record_of(near)
            assert (record.ending, record.has_run, record.upstream_error) == ("shed", False, "destination_unavailable")
        # The others are served.
        assert near.request("GET", "/")[0].status == 200


def test_a_host_that_was_down_gets_requests_again(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    caplog.set_level(logging.INFO, "threadbridge")
    with RawServer(answering(OK)) as other, frontend(f"http://127.0.0.1:{port}", other.url) as near:
        for _ in range(20):
            assert near.request("POST", "/far/", body=b"x")[0].status == 200
        host = hosts(near)[0]
        assert not host.is_up and host.failed == 1
        assert f"http://127.0.0.1:{port} is left out" in caplog.text
        with BridgeThread(application, threads=1) as far:
            host._origin = host._origin._replace(port=far.port)
            wait_until(lambda: near.request("POST", "/far/", body=b"x")[0].status == 200 and host.is_up, "it is back")
            assert "answers again" in caplog.text
            wait_until(
                lambda: near.request("GET", "/far/")[0].status == 200 and host.answered > 5, "it takes its share"
            )


# What has not run goes to the next host.


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_request_that_a_host_refused_unrun_goes_to_the_next(size: int) -> None:
    with (
        RawServer(answering(NEVER_RAN)) as full,
        BridgeThread(application, threads=1) as far,
        frontend(full.url, f"http://127.0.0.1:{far.port}") as near,
    ):
        for _ in range(4):
            response, body = near.request("POST", "/far/", body=b"x" * size)
            assert response.status == 200 and json.loads(body)["length"] == size
        refused, answered = hosts(near)
        assert (refused.refused, refused.failed, answered.answered) == (len(full.requests), 0, 4)
        # It is full, not broken.
        assert len(full.requests) >= 2 and refused.is_up


def test_a_refusal_before_the_body_has_been_sent_leaves_it_whole_for_the_next_host() -> None:
    body = os.urandom(6_000_000)
    digests: list[str] = []

    def digest(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        digests.append(hashlib.sha256(environ["wsgi.input"].read()).hexdigest())
        start_response("200 OK", [])
        return []

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        BridgeThread(digest, threads=1) as far,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}", f"http://127.0.0.1:{far.port}") as near,
    ):
        for size in (0, 1, 1000, 200_000, 1_500_000):
            # Its turn, if it is the first of the two again.
            near.loop.call_soon_threadsafe(setattr, next(iter(near.bridge.forwarding.upstreams.values())), "_next", 1)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(near.request, "POST", "/far/", body)
                full, _ = listener.accept()
                with full:
                    # So much of it has been read when the refusal comes.
                    received = len(full.recv(1))
                    while received < size:
                        received += len(full.recv(65536))
                    full.sendall(NEVER_RAN)
                    assert answer.result()[0].status == 200
        assert digests == [hashlib.sha256(body).hexdigest()] * 5
        wait_until(lambda: near.bridge.spool.taken == 0, "the disk is free")


def test_if_all_hosts_refuse_the_client_gets_their_answer() -> None:
    with (
        RawServer(answering(NEVER_RAN)) as one,
        RawServer(answering(NEVER_RAN)) as other,
        frontend(one.url, other.url) as near,
    ):
        response, body = near.request("POST", "/far/", body=b"x")
        assert (response.status, body) == (503, b"full")
        assert (response.headers["Retry-After"], response.headers["X-Threadbridge-Ran"]) == ("7", "no")
        assert len(one.requests) == len(other.requests) == 1


def test_a_503_that_may_have_run_goes_to_the_client() -> None:
    sent = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"
    with RawServer(answering(sent)) as one, RawServer(answering(sent)) as other, frontend(one.url, other.url) as near:
        response, _ = near.request("GET", "/far/")
        assert (response.status, response.headers["Retry-After"]) == (503, "9")
        assert len(one.requests) + len(other.requests) == 1


def test_a_full_bridge_says_that_a_request_has_not_run() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert go_on.wait(20)
        start_response("200 OK", [])
        return [b"far"]

    with BridgeThread(wait, threads=1, queue=0) as full, BridgeThread(application, threads=2) as far:
        client = full.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert entered.wait(10)
        response, _ = full.request("POST", "/")
        assert (response.status, response.headers["X-Threadbridge-Ran"]) == (503, "no")
        with frontend(f"http://127.0.0.1:{full.port}", f"http://127.0.0.1:{far.port}") as near:
            for _ in range(4):
                assert json.loads(near.request("POST", "/far/", body=b"x" * 200_000)[1])["length"] == 200_000
            assert hosts(near)[0].refused >= 1
        go_on.set()
        client.close()


# Connections.


def test_connections_are_kept_and_a_closed_one_is_replaced_without_a_failure() -> None:
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        for _ in range(5):
            assert near.request("POST", "/far/", body=b"x")[0].status == 200
        assert far.connections == 1
        [client] = far._clients
        client.shutdown(socket.SHUT_RDWR)
        assert near.request("POST", "/far/", body=b"x")[0].status == 200
        assert (far.connections, len(far.requests)) == (2, 6)


def test_a_kept_connection_that_closes_unnoticed_is_not_used() -> None:
    """The loop has not seen the end yet when it takes the connection."""
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        assert near.request("POST", "/far/", body=b"x")[0].status == 200
        closed = threading.Event()

        def close() -> None:
            far._clients[0].shutdown(socket.SHUT_RDWR)
            # The kernel has it at once, but the loop is in this callback.
            [connection] = hosts(near)[0]._kept
            wait_until(lambda: not connection.is_usable, "the kernel knows")
            client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
            clients.append(client)
            closed.set()

        clients: list[socket.socket] = []
        near.loop.call_soon_threadsafe(close)
        assert closed.wait(10)
        assert b"200 OK" in clients[0].recv(65536)
        clients[0].close()
        assert len(far.requests) == 2


def test_a_kept_connection_that_takes_not_one_byte_is_replaced() -> None:
    request = b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}") as near,
    ):
        client = near.send(request)
        first, _ = listener.accept()
        assert whole_request(first)
        first.sendall(OK)
        assert b"200 OK" in client.recv(65536)
        client.close()
        wait_until(lambda: len(hosts(near)[0]._kept) == 1, "it is kept")
        [connection] = hosts(near)[0]._kept
        # The other end leaves its own side open: to look at the connection does not tell.
        near.loop.call_soon_threadsafe(connection._stream.socket.shutdown, socket.SHUT_WR)
        client = near.send(request)
        second, _ = listener.accept()
        assert whole_request(second)
        second.sendall(OK)
        assert b"200 OK" in client.recv(65536)
        assert hosts(near)[0].failed == 0
        for each in (client, first, second):
            each.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_kept_connection_that_closes_under_a_request_does_not_run_it_twice(method: str, how: str) -> None:
    """The server may have run it before it closed the connection: nobody can know."""
    count = 0

    def once(client: socket.socket, request: bytes) -> bool:
        nonlocal count
        count += 1
        if count == 1:
            client.sendall(OK)
            return True
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    with RawServer(once) as far, RawServer(answering(NEVER_RAN)) as other, frontend(far.url, other.url) as near:
        statuses = [near.request(method, "/far/")[0].status for _ in range(2)]
        assert sorted(statuses) == [200, 502]
        assert len(far.requests) == 2


def test_bytes_that_nobody_asked_for_end_a_kept_connection() -> None:
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        near.request("GET", "/far/")
        far._clients[0].sendall(OK)
        wait_until(lambda: hosts(near)[0].connections == 0, "it is closed")
        assert near.request("GET", "/far/")[1] == b"ok"


def test_an_early_answer_ends_the_connection_if_the_request_has_not_been_sent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}") as near,
    ):
        client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 20000000\r\n\r\n")
        sender = threading.Thread(target=client.sendall, args=(b"x" * 20_000_000,))
        sender.start()
        far, _ = listener.accept()
        far.recv(1000)
        far.sendall(b"HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\n\r\nno!")
        sender.join()
        assert client.recv(65536).startswith(b"HTTP/1.1 413 Too Much")
        wait_until(lambda: hosts(near)[0].connections == 0, "the connection is closed")
        wait_until(lambda: near.bridge.spool.taken == 0, "the disk is free")
        far.close()
        client.close()


# Clients that leave, and those that stay too long.


def test_a_leaving_client_closes_the_connection_to_the_host() -> None:
    gone = threading.Event()

    def hold(client: socket.socket, request: bytes) -> bool:
        if not client.recv(1):
            gone.set()
        return False

    with RawServer(hold) as far, frontend(far.url) as near:
        client = near.send(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: bool(far.requests), "it is there")
        reset(client)
        assert gone.wait(10)
        record = record_of(near)
        assert (record.status, record.ending, record.upstream) == (499, "abandoned", far.url)
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")
        # A client's leaving is no failure of the host.
        assert hosts(near)[0].is_up


def test_a_post_whose_client_leaves_runs_on() -> None:
    go_on = threading.Event()

    def hold(client: socket.socket, request: bytes) -> bool:
        assert go_on.wait(10)
        client.sendall(OK)
        return True

    with RawServer(hold) as far, frontend(far.url) as near:
        client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        wait_until(lambda: bool(far.requests), "it is there")
        reset(client)
        assert record_of(near).ending == "abandoned"
        assert (near.bridge.lanes[0].busy, hosts(near)[0].connections) == (1, 1)
        go_on.set()
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "it has ended")
        assert hosts(near)[0].answered == 1
        # The connection is as good as new.
        assert near.request("GET", "/far/")[1] == b"ok" and far.connections == 1


def test_the_deadline_ends_it() -> None:
    def hold(client: socket.socket, request: bytes) -> bool:
        assert client.recv(1) == b""
        return False

    with RawServer(hold) as far, frontend(far.url, deadline=0.3) as near:
        assert near.request("GET", "/far/")[0].status == 504
        assert record_of(near).ending == "expired"
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "the connection is closed")


def test_another_bridge_cancels_even_a_post_when_the_sender_closes_the_connection() -> None:
    entered, cancelled = threading.Event(), threading.Event()

    def wait(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        current().on_cancel(cancelled.set)
        entered.set()
        assert cancelled.wait(20)
        start_response("200 OK", [])
        return []

    with BridgeThread(wait, threads=1, xheaders=True) as far, frontend(f"http://127.0.0.1:{far.port}") as near:
        client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert entered.wait(10)
        [exchange] = near.bridge.exchanges.open
        near.loop.call_soon_threadsafe(near.bridge.exchanges.stop, exchange)
        assert cancelled.wait(10)
        assert client.recv(65536).startswith(b"HTTP/1.1 504 ")
        client.close()


def test_a_slow_client_holds_up_its_own_response_alone() -> None:
    size = 30_000_000

    def large(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(size // 65536))

    with BridgeThread(large, threads=2, memory_size=1_000_000) as far, frontend(f"http://127.0.0.1:{far.port}") as near:
        slow = near.connect()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: any(each.answered_at for each in near.bridge.exchanges.open), "it has begun")
        assert len(near.request("GET", "/far/")[1]) == size // 65536 * 65536
        # What it has not read is in the kernel, and on the other host.
        assert near.bridge.spool.unread.taken < 300_000
        slow.close()
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")


def test_a_forked_process_does_not_hold_a_connection_whose_client_is_slow() -> None:
    """Otherwise the host would not learn that the client has left."""

    def endless(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b"x" * 65536)

    with RawServer(endless) as far, frontend(far.url) as near:
        slow = near.send(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: len(hosts(near)[0]._open) == 1, "it is there")
        [connection] = hosts(near)[0]._open
        wait_until(lambda: connection._stream.paused, "nothing more is read")
        descriptor = connection._stream.descriptor
        # A server that drains has closed its listeners; a fork must not fail because of that.
        listener = socket.create_server(("127.0.0.1", 0))
        forks.listens(listener)
        listener.close()
        child = os.fork()
        if child == 0:
            os._exit(0 if stat.S_ISCHR(os.fstat(descriptor).st_mode) else 1)
        assert os.waitpid(child, 0)[1] == 0
        slow.close()
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")


def test_nothing_is_left_of_clients_and_hosts_that_leave_at_any_moment() -> None:
    chance = random.Random(7)
    calm = threading.Event()

    def moody(client: socket.socket, request: bytes) -> bool:
        mood = 1.0 if calm.is_set() else chance.random()
        if mood < 0.2:
            return False
        if mood < 0.4:
            client.sendall(NEVER_RAN)
            return True
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 100_000)
        if mood < 0.5:
            return False
        client.sendall(b"x" * 200_000)
        return True

    with (
        RawServer(moody) as one,
        RawServer(moody) as other,
        frontend(one.url, other.url, f"http://127.0.0.1:{free_port()}") as near,
    ):

        def visit(number: int) -> None:
            size = chance.choice([0, 10, 2_000_000])
            method = chance.choice(["GET", "POST"])
            client = near.send(f"{method} /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
            mood = chance.random()
            with client, contextlib.suppress(OSError):
                client.sendall(b"x" * (size // 2 if mood < 0.2 else size))
                if mood < 0.7:
                    client.settimeout(0.2)
                    while client.recv(50_000) and chance.random() < 0.8:
                        pass

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(visit, range(400)))
        bridge = near.bridge
        wait_until(lambda: not bridge.exchanges.open and bridge.lanes[0].busy == 0, "all have ended")
        wait_until(
            lambda: bridge.spool.taken == bridge.spool.memory.taken == bridge.spool.unread.taken == 0, "no bytes"
        )
        assert [host.running for host in hosts(near)] == [0, 0, 0]
        assert all(host.connections == len(host._kept) for host in hosts(near))
        calm.set()
        assert near.request("GET", "/far/")[0].status == 200


# Limits.


def test_the_requests_on_other_hosts_are_limited_in_all_and_for_each_client() -> None:
    go_on = threading.Event()

    def hold(client: socket.socket, request: bytes) -> bool:
        go_on.wait(20)
        client.sendall(OK)
        return True

    def key(headers: Any, address: str) -> str:
        return str(headers["X-Client"])

    with RawServer(hold) as far, frontend(far.url, room=8, client_key=key) as near:
        begun = b"GET /far/ HTTP/1.1\r\nHost: a\r\nX-Client: %d\r\nConnection: close\r\n\r\n"
        clients = [near.send(begun % 1) for _ in range(5)]
        # A client has a quarter.
        statuses = sorted(client.recv(12)[9:] for client in clients[2:])
        assert statuses == [b"503", b"503", b"503"]
        clients += [near.send(begun % number) for number in (2, 2, 3, 3, 4, 4)]
        wait_until(lambda: near.bridge.lanes[0].busy == 8, "all places are taken")
        response, _ = near.request("GET", "/far/", headers={"X-Client": "5"})
        assert (response.status, response.headers["X-Threadbridge-Ran"]) == (503, "no")
        go_on.set()
        for client in clients[:2] + clients[5:]:
            assert b"200 OK" in client.recv(65536)
        for client in clients:
            client.close()


def test_a_forwarded_request_runs_where_it_arrives() -> None:
    """All hosts may have the same configuration."""
    port = free_port()
    here = [Lane("far", "/far/*", upstream=[f"http://127.0.0.1:{port}"])]
    with BridgeThread(application, threads=1, lanes=here, xheaders=True) as far:
        with frontend(f"http://127.0.0.1:{far.port}") as near:
            assert near.request("GET", "/far/")[0].status == 200
        response, _ = far.request("GET", "/far/")
        assert response.status == 503


def test_hosts_that_trust_nobody_do_not_forward_in_circles(caplog: pytest.LogCaptureFixture) -> None:
    with frontend(f"http://127.0.0.1:{free_port()}") as near:
        [host] = hosts(near)
        host._origin = host._origin._replace(port=near.port)
        response, _ = near.request("GET", "/far/")
        assert response.status == 503
        records = [record_of(near) for _ in range(4)]
        assert {record.status for record in records} == {503}
        assert "have forwarded it 3 times already" in caplog.text


def fallback(bridge: Bridge) -> TornadoHTTPServer:
    return TornadoHTTPServer(Application([(r".*", FallbackHandler, {"fallback": bridge})]))


@pytest.mark.parametrize("make_server", [TornadoHTTPServer, fallback])
def test_behind_tornados_own_server(make_server: Any) -> None:
    with BridgeThread(application, threads=1, xheaders=True) as far:
        lanes = [Lane("far", "/far/*", upstream=[f"http://127.0.0.1:{far.port}"])]
        with BridgeThread(application, make_server, threads=1, lanes=lanes) as near:
            for size in (10, 3_000_000):
                response, body = near.request("POST", "/far/?a", body=b"x" * size)
                seen = json.loads(body)
                assert (response.status, seen["length"], seen["REQUEST_URI"]) == (200, size, "/far/?a")
                assert seen["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"


# By learned class.


def test_long_requests_go_to_other_hosts_and_short_ones_stay() -> None:
    with BridgeThread(application, threads=1) as far:
        settings: BridgeSettings = {"long_upstream": [f"http://127.0.0.1:{far.port}"], "long_paths": ["/long*"]}
        with BridgeThread(application, threads=1, **settings) as near:
            assert "HTTP_VIA" in json.loads(near.request("GET", "/long/1")[1])
            assert "HTTP_VIA" not in json.loads(near.request("GET", "/short")[1])
        # While nobody is there, they run here.
        settings["long_upstream"] = [f"http://127.0.0.1:{free_port()}"]
        with BridgeThread(application, threads=1, **settings) as near:
            assert near.request("GET", "/long/1")[0].status == 503
            assert "HTTP_VIA" not in json.loads(near.request("GET", "/long/1")[1])


def test_unusable_hosts_are_refused() -> None:
    for url in ("r1:8000", "ftp://r1", "http://", "http://r1:99999", "http://r1/path", "http://a@r1", "http://r1?x"):
        with pytest.raises(ValueError, match="expected http://HOST:PORT"):
            Lane("far", upstream=[url])
    with pytest.raises(ValueError, match="give threads or upstream"):
        Lane("far", threads=1, upstream=["http://r1"])
    with pytest.raises(ValueError, match="long_upstream needs schedule=cost"):
        Bridge(application, threads=1, long_upstream=["http://r1"], schedule="fair")
    assert [str(origin) for origin in Lane("far", upstream=["http://r1", "https://[::1]"]).upstream] == [
        "http://r1:80",
        "https://[::1]:443",
    ]
