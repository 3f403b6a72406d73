"""How the server sends what applications answer, and what they get wrong; test_bridge.py has what it refuses."""

from __future__ import annotations

import http.client
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import pytest
import requests

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.processes import Frontend
from threadbridge import Bridge
from threadbridge.worker import wsgi
from threadbridge.worker.application_values import check_application

PLAIN = [("Content-Type", "text/plain")]
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def answers(status: str, headers: list[tuple[str, str]], body: Iterable[bytes] = (b"hello",)) -> Any:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, headers)
        return body

    return app


@pytest.mark.parametrize("name", ["Connection", "keep-alive", "Upgrade", "Transfer-Encoding", "Trailer"])
def test_headers_of_the_connection_are_dropped_with_one_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    wsgi._dropped.clear()
    app = answers("200 OK", [*PLAIN, (name, "chunked")])
    with BridgeThread(app, threads=1) as server:
        for _ in range(3):
            response, body = server.request(path="/events")
            assert (response.status, body) == (200, b"hello")
            assert response.headers[name] is None and response.headers["Content-Length"] == "5"
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert name in warning.getMessage() and "/events" in warning.getMessage()


def test_a_file_without_a_head_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](path.open("rb"))
        return wrapped

    with BridgeThread(app, threads=1) as server:
        assert server.request()[0].status == 500
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the file is closed")
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert path not in links


@pytest.mark.parametrize(
    ("body", "method", "length"),
    [
        ([], "HEAD", None),
        ([b""], "HEAD", None),
        ([], "GET", "0"),
        ([b"hello"], "HEAD", "5"),
        ([b"hello"], "GET", "5"),
    ],
)
def test_the_length_of_a_list(body: list[bytes], method: str, length: str | None) -> None:
    with BridgeThread(answers("200 OK", PLAIN, body), threads=1) as server:
        response, _ = server.request(method)
    assert (response.status, response.headers["Content-Length"]) == (200, length)


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [("200", 200, ""), ("404 ", 404, ""), ("299 Own", 299, "Own"), ("600 Own", 600, "Own"), ("999", 999, "")],
)
def test_statuses_that_other_servers_send_too(given: str, status: int, reason: str) -> None:
    with BridgeThread(answers(given, PLAIN), threads=1) as server:
        response, body = server.request()
    assert (response.status, response.reason, body) == (status, reason, b"hello")


def test_the_application_s_own_server_header_is_kept() -> None:
    with BridgeThread(answers("200 OK", [*PLAIN, ("server", "own")]), threads=1) as server:
        response, _ = server.request()
    assert response.headers.get_all("Server") == ["own"]


def test_nothing_delays_a_piece_of_a_stream() -> None:
    go_on = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        assert go_on.wait(20)
        yield b"hello"

    with BridgeThread(app, threads=1) as server:
        client = server.send(GET)
        wait_until(lambda: server.bridge.lanes[-1].busy == 1, "the application runs")
        [exchange] = server.bridge.exchanges.open
        # Without it the kernel holds a piece back until the client has acknowledged the one before.
        assert exchange.connection.stream.socket.getsockopt(IPPROTO_TCP, TCP_NODELAY)  # type: ignore[attr-defined]
        go_on.set()
        client.close()


def test_headers_arrive_as_they_are_given() -> None:
    headers = [*PLAIN, ("Set-Cookie", " a=1; Path=/"), ("X-Name", "caf\xe9"), ("Set-Cookie", "b=2"), ("X-Empty", "")]

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", headers)
        return []

    with BridgeThread(validator(app), threads=1) as server:
        response, _ = server.request()
    for name, value in headers:
        assert value.strip() in response.headers.get_all(name, [])
    assert response.headers.get_all("Set-Cookie") == ["a=1; Path=/", "b=2"]


def test_exc_info_by_keyword() -> None:
    def app(environ: WSGIEnvironment, start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        try:
            raise LookupError("on purpose")
        except LookupError:
            start_response("503 Sorry", PLAIN, exc_info=sys.exc_info())
        return [b"sorry"]

    with BridgeThread(app, threads=1) as server:
        response, body = server.request()
    assert (response.status, body) == (503, b"sorry")


def test_an_empty_write_sends_the_head() -> None:
    go_on = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"")
        assert go_on.wait(20)
        return [b"hello"]

    with BridgeThread(app, threads=1) as server, server.send(GET) as client:
        response = http.client.HTTPResponse(client)
        # It returns when the head is there, and the application waits until then.
        response.begin()
        go_on.set()
        assert response.read() == b"hello"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("length", [[], [("Content-Length", "5")]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_205_has_no_body(
    method: str, length: list[tuple[str, str]], is_stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("205 Reset Content", [*PLAIN, *length])
        return iter([b"hel", b"lo"]) if is_stream else [b"hello"]

    with BridgeThread(app, threads=1) as server:
        received = server.exchange(GET.replace(b"GET", method.encode()))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 205 ")
    # RFC 9110, section 15.3.6: its end must be told all the same.
    assert b"\r\nContent-Length: 0\r\n" in head and b"chunked" not in head
    assert body == b""
    assert [record for record in caplog.records if record.name == "threadbridge"] == []


def test_two_lengths_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        lengths = [("Content-Length", length) for length in environ["QUERY_STRING"].split(",")]
        start_response("200 OK", [*PLAIN, *lengths])
        return [b"hello"]

    with BridgeThread(app, threads=1) as server:
        response, body = server.request(path="/?5,5")
        assert (response.headers.get_all("Content-Length"), body) == (["5"], b"hello")
        assert server.request(path="/?5,4")[0].status == 500
    assert "Content-Length is 5 and 4; give it once" in caplog.text


def create_app() -> Any:
    return answers("200 OK", PLAIN)


def create_app_with(configuration: str = "production") -> Any:
    return answers("200 OK", PLAIN)


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize("factory", [create_app, create_app_with, asgi])
def test_a_factory_is_told_at_the_start(factory: Any) -> None:
    with pytest.raises(ValueError, match=r"If it is a factory, give what it returns"):
        Bridge(factory, threads=1)


def test_a_factory_on_the_command_line_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "factory_app.py").write_text("def create_app():\n    return lambda environ, start_response: []\n")
    server = Frontend(("-m", "threadbridge", "factory_app:create_app", "--threads=1", "--port={port}"), cwd=tmp_path)
    with pytest.raises(RuntimeError, match=r"ended with 2:\n.*If it is a factory, give what it returns"):
        server.start()


def test_a_factory_that_takes_two_arguments_is_told_by_its_first_request(caplog: pytest.LogCaptureFixture) -> None:
    def create(first: Any, second: Any) -> Any:
        return answers("200 OK", PLAIN)

    with BridgeThread(create, threads=1) as server:
        assert server.request()[0].status == 500
    assert "is it a factory of applications?" in caplog.text


class Callables:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any, debug: bool = False) -> list[bytes]:
        return []


class Iterated:
    def __init__(self, environ: Any, start_response: Any) -> None: ...


@pytest.mark.parametrize(
    "application", [Callables(), Callables().method, Iterated, lambda *args, **keywords: [], print]
)
def test_what_can_be_called_as_an_application_is_one(application: Any) -> None:
    check_application(application)


MULTIPROCESS = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(environ["wsgi.multiprocess"]).encode()]
"""


@pytest.mark.parametrize(
    ("arguments", "is_multiprocess"), [((), "False"), (("--processes=2",), "True"), (("--reuse_port",), "True")]
)
def test_the_application_is_told_whether_it_runs_in_other_processes_too(
    arguments: tuple[str, ...], is_multiprocess: str, tmp_path: Path
) -> None:
    (tmp_path / "told_app.py").write_text(MULTIPROCESS)
    command = ("-m", "threadbridge", "told_app:app", "--threads=1", "--port={port}", *arguments)
    with Frontend(command, cwd=tmp_path) as server:
        assert requests.get(server.url, timeout=30).text == is_multiprocess
        assert server.stop() == 0
