"""Forwarded requests as other hosts get them, and the responses as clients get them."""

from __future__ import annotations

import json
import time
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.web import Application, FallbackHandler

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.raw_server import RawServer, answering
from tests.support.remote_lane import application, frontend, hosts, record_of
from threadbridge import Bridge, Lane, current
from threadbridge.http.intermediary import SENT_BY_LANE, TIME_LEFT


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


@pytest.mark.parametrize("xheaders", [False, True])
def test_what_an_untrusted_client_says_of_itself_does_not_reach_a_host_that_trusts_this_one(xheaders: bool) -> None:
    said = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil", "X-Forwarded-For": "192.0.2.7"}
    with BridgeThread(application, threads=1, xheaders=True) as far:
        url = f"http://127.0.0.1:{far.port}"
        with frontend(url, xheaders=xheaders) as near:
            seen = json.loads(near.request("GET", "/far/", headers=said)[1])
    if xheaders:
        # Here it comes from a proxy on this machine.
        assert seen["HTTP_X_FORWARDED_HOST"] == "evil.example" and seen["HTTP_X_FORWARDED_PREFIX"] == "/evil"
    else:
        assert seen["HTTP_X_FORWARDED_HOST"] == seen["HTTP_HOST"] and "HTTP_X_FORWARDED_PREFIX" not in seen
        assert seen["REMOTE_ADDR"] == "127.0.0.1"


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
            "Connection": SENT_BY_LANE,
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
