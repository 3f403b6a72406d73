"""The bridge as the ``fallback`` of `tornado.web.FallbackHandler`, in the place of `WSGIContainer`."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.web import Application, FallbackHandler, RequestHandler, StaticFileHandler

from tests.support.inprocess import BridgeThread, assert_leaving_client_is_noticed, wait_until
from threadbridge import Bridge, HTTPServer

PLAIN = [("Content-Type", "text/plain")]
MakeServer = Callable[[Bridge], TornadoHTTPServer]


class Native(RequestHandler):
    def get(self) -> None:
        self.write("from tornado")


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield " ".join((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])).encode()
    yield b" " + environ["wsgi.input"].read()


def application(bridge: Bridge) -> Application:
    return Application([("/native", Native), (".*", FallbackHandler, {"fallback": bridge})])


def tornado_s(bridge: Bridge) -> TornadoHTTPServer:
    return TornadoHTTPServer(application(bridge), xheaders=True)


def own(bridge: Bridge) -> HTTPServer:
    return HTTPServer(application(bridge), xheaders=True)


either_server = pytest.mark.parametrize("make_server", [tornado_s, own])


@either_server
def test_requests_go_through_the_fallback_on_one_connection(make_server: MakeServer) -> None:
    with BridgeThread(echo, make_server, threads=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)

        def ask(method: str, target: str, body: bytes | None = None) -> bytes:
            connection.request(method, target, body=body)
            return connection.getresponse().read()

        for _ in range(3):
            assert ask("GET", "/native") == b"from tornado"
            assert ask("GET", "/a%20b?c=d") == b"GET /a b c=d "
            assert ask("POST", "/form", b"body") == b"POST /form  body"
            assert ask("HEAD", "/") == b""
        connection.close()


@either_server
def test_static_files_come_from_tornado_and_all_else_from_the_fallback(make_server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(bytes(range(256)) * 4000)

    def with_files(bridge: Bridge) -> TornadoHTTPServer:
        server = make_server(bridge)
        assert isinstance(server.request_callback, Application)
        server.request_callback.add_handlers(".*", [("/static/(.*)", StaticFileHandler, {"path": str(tmp_path)})])
        return server

    with BridgeThread(echo, with_files, threads=1) as server:
        response, body = server.request(path="/static/large.bin")
        assert (response.status, body) == (200, bytes(range(256)) * 4000)
        unchanged = server.request(path="/static/large.bin", headers={"If-None-Match": response.headers["Etag"]})
        assert (unchanged[0].status, unchanged[1]) == (304, b"")
        part = server.request(path="/static/large.bin", headers={"Range": "bytes=255-256"})
        assert (part[0].status, part[1]) == (206, b"\xff\x00")
        assert server.request(path="/static/none")[0].status == 404
        assert server.request(path="/other")[1] == b"GET /other  "


@either_server
def test_a_large_body_goes_through_the_fallback_by_way_of_the_disk(make_server: MakeServer) -> None:
    body = bytes(range(256)) * 20_000
    with BridgeThread(echo, make_server, threads=1) as server:
        response, received = server.request("PUT", "/large", body)
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")
    assert (response.status, received) == (200, b"PUT /large  " + body)


@either_server
def test_the_fallback_gets_the_client_that_tornado_knows(make_server: MakeServer) -> None:
    def tell_client(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [f"{environ['REMOTE_ADDR']} {environ['wsgi.url_scheme']}".encode()]

    with BridgeThread(tell_client, make_server, threads=1) as server:
        headers = {"X-Real-Ip": "203.0.113.9", "X-Scheme": "https"}
        assert server.request(headers=headers)[1] == b"203.0.113.9 https"
        assert server.request()[1] == b"127.0.0.1 http"


@either_server
def test_a_client_that_leaves_ends_its_request_in_the_fallback(make_server: MakeServer) -> None:
    assert_leaving_client_is_noticed(make_server)


@either_server
def test_the_fallback_answers_503_when_the_queue_is_full(make_server: MakeServer) -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert gate.wait(20)
        start_response("200 OK", PLAIN)
        return [b"done"]

    with BridgeThread(wait, make_server, threads=1, queue=0) as server:
        request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
        with server.send(request) as running:
            assert entered.wait(30)
            refused: Any = server.exchange(request)
            # Its body is not kept: it is not discarded again.
            assert server.bridge.spool.memory.taken == 1
            gate.set()
            assert running.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert refused.count(b"HTTP/1.1 ") == 1
