"""The bridge in Tornado's company: under Tornado's own server, behind a router, beside handlers and WebSockets."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPServerRequest, ResponseStartLine
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import websocket_connect

from tests.support.inprocess import BridgeThread, assert_leaving_client_is_noticed, wait_until
from tests.support.processes import Frontend
from threadbridge import Bridge, HTTPServer
from threadbridge.http.limits import Limits

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
    assert_leaving_client_is_noticed(server_class)


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


class Upload(RequestHandler):
    def post(self) -> None:
        self.write(str(len(self.request.body)))


@stream_request_body
class Limited(RequestHandler):
    """Sets limits of its own for its body."""

    count = 0

    def prepare(self) -> None:
        connection: Any = self.request.connection
        connection.set_max_body_size(int(self.request.query))
        connection.set_body_timeout(0.1)

    def data_received(self, chunk: bytes) -> None:
        self.count += len(chunk)

    def post(self) -> None:
        self.write(str(self.count))


@stream_request_body
class Faulty(RequestHandler):
    async def data_received(self, chunk: bytes) -> None:
        raise HTTPInputError(f"not to its liking: {chunk!r}")


@stream_request_body
class Broken(RequestHandler):
    ended = 0

    def data_received(self, chunk: bytes) -> None:
        raise LookupError("as asked")

    def on_connection_close(self) -> None:
        Broken.ended += 1


class Short(RequestHandler):
    async def get(self) -> None:
        self.set_header("Content-Length", "10")
        self.write(b"abc")
        await self.flush()


def from_tornado(bridge: Bridge) -> HTTPServer:
    handlers: list[Any] = [("/upload", Upload), ("/limited", Limited), ("/faulty", Faulty), ("/native", Native)]
    handlers += [("/broken", Broken), ("/short", Short)]
    return HTTPServer(Application(handlers), limits=Limits(max_body_size=1000))


def routed(bridge: Bridge) -> HTTPServer:
    return HTTPServer(RuleRouter([Rule(PathMatches("/.*"), Application([("/native", Native)]))]))


@pytest.mark.parametrize("make_server", [from_tornado, routed])
@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("/native", "a,b"),
        ("/native?" + "&".join(["a=1"] * 1001), "a"),
        ("/native?" + "a&" * 1001, "a"),
    ],
)
@pytest.mark.parametrize("behind", [b"", b"GET /native HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_request_that_tornado_cannot_read_is_answered_400(
    make_server: Callable[[Bridge], HTTPServer],
    target: str,
    host: str,
    behind: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with BridgeThread(echo, make_server, threads=1) as server:
        for head in (f"GET {target} HTTP/1.1\r\n", f"POST {target} HTTP/1.1\r\nContent-Length: 1\r\n"):
            received = server.exchange(f"{head}Host: {host}\r\n\r\n".encode() + (behind if "GET" in head else b"x"))
            assert received.startswith(b"HTTP/1.1 400 "), received
            assert received.count(b"HTTP/1.1 ") == 1
        assert server.request(path="/native")[1] == b"from tornado"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_delegate_that_refuses_a_body_later_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(echo, from_tornado, threads=1) as server:
        response, body = server.request("POST", "/faulty", b"\x85abc")
    assert (response.status, response.headers["Connection"]) == (400, "close")
    assert body == b"400 Bad Request: not to its liking: b'\\\\x85abc'\n"
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_delegate_that_fails_is_told_that_its_request_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(echo, from_tornado, threads=1) as server:
        for _ in range(3):
            assert server.exchange(b"POST /broken HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody") == b""
    assert Broken.ended == 3
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["as asked"]


def test_responses_that_are_too_short_are_cut_with_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(echo, from_tornado, threads=1) as server:
        for _ in range(3):
            with pytest.raises(http.client.IncompleteRead):
                server.request(path="/short")
    [message] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert message.endswith(" is 7 bytes shorter than its Content-Length")


@pytest.mark.parametrize(
    ("limit", "size", "status"),
    [(10, 10, 200), (10, 11, 413), (0, 0, 200), (0, 1, 413), (1000, 1000, 200), (1001, 1, 500)],
)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_handler_sets_the_largest_body_of_its_request(limit: int, size: int, status: int, in_chunks: bool) -> None:
    sent = b"a" * size
    framing = "Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {size}"
    body = b"%x\r\n%b\r\n" % (size, sent) * bool(size) + b"0\r\n\r\n" if in_chunks else sent
    head = f"POST /limited?{limit} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n".encode()
    with BridgeThread(echo, from_tornado, threads=1) as server:
        received = server.exchange(head + body)
        # It was a limit for that request.
        assert server.request("POST", "/upload", b"a" * 1000)[1] == b"1000"
    assert received.startswith(b"HTTP/1.1 %d " % status), received
    if status == 200:
        assert received.endswith(b"\r\n\r\n%d" % size)
    if status == 413:
        assert received.endswith(b"the body is larger than the limit of %d bytes\n" % limit)


def test_a_handler_sets_the_time_for_its_body() -> None:
    with BridgeThread(echo, from_tornado, threads=1) as server:
        received = server.exchange(b"POST /limited?10 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("length", ["+10", "1_0", " 10 ", "-1", "0x0a", "", "10, 10", "\u0661"])
def test_a_length_that_is_not_all_digits_is_the_caller_s_mistake(length: str) -> None:
    raised: list[str] = []

    def answer(request: HTTPServerRequest) -> None:
        connection: Any = request.connection
        headers = HTTPHeaders()
        headers.add("Content-Length", length, _chars_are_bytes=False)
        try:
            connection.write_headers(ResponseStartLine("HTTP/1.1", 200, "OK"), headers, b"a" * 10)
        except ValueError as error:
            raised.append(str(error))
            connection.write_headers(ResponseStartLine("HTTP/1.1", 204, "OK"), HTTPHeaders())
        connection.finish()

    with BridgeThread(echo, lambda bridge: HTTPServer(answer), threads=1) as server:
        assert server.request()[0].status == 204
    assert raised == [f"Content-Length is {length!r}; expected digits"]


@pytest.mark.parametrize(
    ("parameters", "limits"),
    [
        ({}, Limits()),
        ({"max_body_size": 5, "max_header_size": 900}, Limits(max_body_size=5, max_header_size=900)),
        ({"idle_connection_timeout": 2.5}, Limits(idle_timeout=2.5)),
        ({"max_body_size": 0}, Limits(max_body_size=0)),
        # Tornado's defaults change nothing.
        ({"max_body_size": None, "no_keep_alive": False, "chunk_size": None}, Limits()),
    ],
)
def test_tornado_s_limits_are_kept(parameters: dict[str, Any], limits: Limits) -> None:
    assert HTTPServer(tell_client, **parameters).limits == limits


def test_a_limit_of_tornado_s_is_enforced() -> None:
    with BridgeThread(echo, lambda bridge: HTTPServer(bridge, max_body_size=5), threads=1) as server:
        assert [server.request("POST", "/", bytes(size))[0].status for size in (5, 6)] == [200, 413]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"no_keep_alive": True}, "send the header Connection: close"),
        ({"decompress_request": True}, "decompress them"),
        ({"body_timeout": 3}, r"limits=Limits\(body_timeout=...\)"),
        ({"chunk_size": 1024}, "leave it out"),
        ({"max_buffer_size": 1024}, "leave it out"),
        ({"max_body_size": 5, "limits": Limits()}, r"give limits=Limits\(max_body_size=5, ...\)"),
    ],
)
def test_parameters_that_would_be_ignored_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HTTPServer(tell_client, **parameters)


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
