"""The bridge in Tornado's company: under Tornado's own server, behind a router, beside handlers and WebSockets."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Awaitable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import websocket_connect

from tests.inprocess import BridgeThread, wait_until
from tests.processes import Frontend
from threadbridge import Bridge, HTTPServer

PLAIN = [("Content-Type", "text/plain")]


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield environ["PATH_INFO"].encode()
    yield environ["wsgi.input"].read()


@pytest.mark.parametrize("server_class", [TornadoHTTPServer, HTTPServer])
def test_the_bridge_is_a_callback_of_either_server(server_class: type[TornadoHTTPServer]) -> None:
    with BridgeThread(echo, server_class, threads=2) as server, requests.Session() as session:
        url = f"http://127.0.0.1:{server.port}"
        assert session.get(f"{url}/a").text == "/a"
        body = bytes(3_000_000)
        assert session.post(f"{url}/b", data=body).content == b"/b" + body
        assert session.post(f"{url}/c", data=iter([b"1", b"23"])).content == b"/c123"
        assert session.head(f"{url}/d").content == b""
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")


@pytest.mark.parametrize("server_class", [TornadoHTTPServer, HTTPServer])
def test_either_server_says_when_a_client_has_left(server_class: type[TornadoHTTPServer]) -> None:
    gate, entered = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert gate.wait(20)
        start_response("200 OK", PLAIN)
        return [b"done"]

    with BridgeThread(app, server_class, threads=1) as server:
        client = server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert entered.wait(10)
        client.close()
        wait_until(lambda: not server.bridge.exchanges, "the client is seen to have left")
        gate.set()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")


class Native(RequestHandler):
    def get(self) -> None:
        self.set_header("X-Handler", "native")
        self.write("from tornado")

    async def post(self) -> None:
        self.write(self.request.body)
        await self.flush()
        self.write(b"!")


@stream_request_body
class Counting(RequestHandler):
    """Takes its body piece by piece, slowly."""

    def initialize(self) -> None:
        self.count = 0

    async def data_received(self, chunk: bytes) -> None:
        await asyncio.sleep(0)
        self.count += len(chunk)

    def put(self) -> None:
        self.write(str(self.count))


class Early(RequestHandler):
    def prepare(self) -> Awaitable[None] | None:
        self.send_error(403)
        return None


def tell_client(request: HTTPServerRequest) -> None:
    """A callback that is no more than a function."""
    text = f"{request.remote_ip} {request.protocol}".encode()
    assert request.connection is not None
    headers = HTTPHeaders({"Content-Length": str(len(text))})
    request.connection.write_headers(ResponseStartLine("HTTP/1.1", 200, "OK"), headers, text)
    request.connection.finish()


@pytest.mark.parametrize(
    ("parameters", "forwarded", "direct"),
    [
        ({"xheaders": True}, b"203.0.113.9 https", b"127.0.0.1 http"),
        ({"protocol": "https"}, b"127.0.0.1 https", b"127.0.0.1 https"),
    ],
)
def test_tornado_s_parameters_mean_what_they_mean_there(
    parameters: dict[str, Any], forwarded: bytes, direct: bytes
) -> None:
    with BridgeThread(echo, lambda bridge: HTTPServer(tell_client, **parameters), threads=1) as server:
        headers = {"X-Real-Ip": "203.0.113.9", "X-Scheme": "https"}
        assert server.request(headers=headers)[1] == forwarded
        assert server.request()[1] == direct


def beside_handlers(bridge: Bridge) -> HTTPServer:
    native = Application([("/native", Native), ("/count", Counting), ("/early", Early)])
    rules = [Rule(PathMatches("/(native|count|early)"), native), Rule(PathMatches("/.*"), bridge)]
    return HTTPServer(RuleRouter(rules))


def test_handlers_and_the_bridge_share_a_connection() -> None:
    with BridgeThread(echo, beside_handlers, threads=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)

        def ask(method: str, path: str, body: bytes | None = None) -> bytes:
            connection.request(method, path, body=body)
            return connection.getresponse().read()

        for _ in range(3):
            assert ask("GET", "/native") == b"from tornado"
            assert ask("GET", "/wsgi") == b"/wsgi"
            assert ask("POST", "/native", b"body") == b"body!"
            assert ask("HEAD", "/native") == b""
            assert ask("PUT", "/count", bytes(1_000_000)) == b"1000000"
            assert ask("POST", "/wsgi", b"body") == b"/wsgibody"
            assert b"403" in ask("GET", "/early")
        connection.close()


def test_pipelined_requests_to_handlers_and_the_bridge_are_answered_in_order() -> None:
    paths = ["/native", "/wsgi", "/early", "/native"] * 100
    lines = "".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths)
    with BridgeThread(echo, beside_handlers, threads=1) as server:
        received = server.exchange(
            lines.encode() + b"GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
    answers = received.split(b"HTTP/1.1 ")[1:]
    marks = {"/native": b"from tornado", "/wsgi": b"/wsgi", "/early": b"403", "/end": b"/end"}
    assert len(answers) == len(paths) + 1
    assert all(marks[path] in answer for path, answer in zip([*paths, "/end"], answers, strict=True))


def test_the_websocket_example_ticks_while_flask_blocks() -> None:
    async def use(port: int) -> None:
        clock = await websocket_connect(f"ws://127.0.0.1:{port}/clock")
        blocked = [asyncio.to_thread(requests.get, f"http://127.0.0.1:{port}/slow") for _ in range(6)]
        answers = asyncio.gather(*blocked)
        await clock.write_message("hello")
        while await clock.read_message() != "you said 'hello'":
            pass
        for _ in range(5):
            assert ":" in str(await clock.read_message())
        # Six take at least two rounds of four threads: the clock has ticked before any was answered.
        assert not answers.done()
        clock.close()
        assert {answer.status_code for answer in await answers} == {200}

    with Frontend(("docs/examples/websocket.py", "{port}")) as server:
        assert "/clock" in requests.get(server.url, timeout=10).text
        asyncio.run(use(server.port))


def test_frames_sent_right_behind_the_handshake_are_not_lost() -> None:
    """The first frame comes in the same segment as the request, before the server has agreed."""
    handshake = (
        b"GET /clock HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    frame = b"\x81\x85\x00\x00\x00\x00early"
    received = b""
    with (
        Frontend(("docs/examples/websocket.py", "{port}")) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        client.sendall(handshake + frame)
        while b"you said 'early'" not in received:
            part = client.recv(4096)
            assert part, received
            received += part
    assert received.startswith(b"HTTP/1.1 101 ")
