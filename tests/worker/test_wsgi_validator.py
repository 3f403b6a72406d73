"""Every way to answer, to read and to end that PEP 3333 knows, with `wsgiref.validate` around the application.

The checker puts an iterator of its own around what the application returns, so the server sees no list and no file;
therefore each application is also served without it.
"""

from __future__ import annotations

import gzip
import http.client
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.validate import validator

import pytest

from tests.support.inprocess import BridgeThread, wait_until

PLAIN = [("Content-Type", "text/plain")]
HELLO = b"hello world"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

served_both_ways = pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])


def wrapped(application: Any, checked: bool) -> WSGIApplication:
    return validator(application) if checked else application


class Closings(list[str]):
    """The name of the thread at each close() of what an application returned."""

    def note(self) -> None:
        self.append(threading.current_thread().name)

    def are(self, count: int) -> bool:
        """Whether there were so many, all of them in the bridge's threads."""
        return len(self) == count and all(name.startswith("threadbridge-default") for name in self)


class Body:
    """An iterable with a close()."""

    def __init__(self, closings: Closings, chunks: Iterable[Any]) -> None:
        self._chunks = chunks
        self.close = closings.note

    def __iter__(self) -> Iterator[Any]:
        return iter(self._chunks)


class ListBody(list[bytes]):
    """A list, and as such known as a whole to the server, with a close()."""

    def __init__(self, closings: Closings, chunks: Iterable[bytes]) -> None:
        super().__init__(chunks)
        self.close = closings.note


Mode: TypeAlias = Callable[[WSGIEnvironment, StartResponse, Closings], Iterable[bytes]]


def answers(status: str, headers: list[tuple[str, str]], result: Callable[[Closings], Iterable[bytes]]) -> Mode:
    def mode(environ: WSGIEnvironment, start_response: StartResponse, closings: Closings) -> Iterable[bytes]:
        start_response(status, headers)
        return result(closings)

    return mode


def a_list(*chunks: bytes) -> Callable[[Closings], Iterable[bytes]]:
    return lambda closings: ListBody(closings, chunks)


def a_stream(*chunks: bytes) -> Callable[[Closings], Iterable[bytes]]:
    return lambda closings: Body(closings, chunks)


def a_late_start(environ: WSGIEnvironment, start_response: StartResponse, closings: Closings) -> Iterable[bytes]:
    def chunks() -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"hello "
        yield b"world"

    return Body(closings, chunks())


def write_alone(environ: WSGIEnvironment, start_response: StartResponse, closings: Closings) -> Iterable[bytes]:
    write = start_response("200 OK", PLAIN)
    write(b"hello ")
    write(b"")
    write(b"world")
    return ListBody(closings, [])


def write_before_the_rest(
    environ: WSGIEnvironment, start_response: StartResponse, closings: Closings
) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "11")])(b"hello ")
    return Body(closings, (chunk for chunk in (b"wor", b"ld")))


def a_file(name: str, open_it: Callable[[Path], Any]) -> Mode:
    def mode(environ: WSGIEnvironment, start_response: StartResponse, closings: Closings) -> Iterable[bytes]:
        file = open_it(environ["test.directory"] / name)
        start_response("200 OK", PLAIN)
        wrapper: Any = environ["wsgi.file_wrapper"](file, 4)

        def close() -> None:
            closings.note()
            file.close()

        wrapper.close = close
        return wrapper  # type: ignore[no-any-return]

    return mode


def a_second_thought(environ: WSGIEnvironment, start_response: StartResponse, closings: Closings) -> Iterable[bytes]:
    def chunks() -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN, ("X-First", "1"), ("Content-Length", "5")])
        yield b""
        try:
            raise LookupError
        except LookupError:
            start_response("503 Service Unavailable", PLAIN, sys.exc_info())
        yield b"hello world"

    return Body(closings, chunks())


ANNOUNCED = [*PLAIN, ("Content-Length", "11")]
MODES: dict[str, tuple[Mode, int, bytes]] = {
    "list": (answers("200 OK", PLAIN, a_list(b"hello ", b"world")), 200, HELLO),
    "announced list": (answers("200 OK", ANNOUNCED, a_list(b"hello ", b"world")), 200, HELLO),
    "empty list": (answers("200 OK", PLAIN, a_list()), 200, b""),
    "stream": (answers("200 OK", PLAIN, a_stream(b"hello ", b"world")), 200, HELLO),
    "announced stream": (answers("200 OK", ANNOUNCED, a_stream(b"hello ", b"world")), 200, HELLO),
    "stream with pauses": (answers("200 OK", PLAIN, a_stream(b"", b"hello ", b"", b"", b"world", b"")), 200, HELLO),
    "empty stream": (answers("200 OK", PLAIN, a_stream()), 200, b""),
    "no content": (answers("204 No Content", [], a_stream()), 204, b""),
    "not modified": (answers("304 Not Modified", [("ETag", '"1"')], a_list()), 304, b""),
    "late start": (a_late_start, 200, HELLO),
    "write": (write_alone, 200, HELLO),
    "write, then stream": (write_before_the_rest, 200, HELLO),
    "file": (a_file("hello", lambda path: path.open("rb")), 200, HELLO),
    # It has a descriptor, but what stands there is not what it reads.
    "compressed file": (a_file("hello.gz", gzip.open), 200, HELLO),
    "second thought": (a_second_thought, 503, HELLO),
}


@served_both_ways
@pytest.mark.parametrize("name", MODES)
def test_every_way_to_answer(
    name: str,
    checked: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "hello").write_bytes(HELLO)
    (tmp_path / "hello.gz").write_bytes(gzip.compress(HELLO))
    mode, status, body = MODES[name]
    closings = Closings()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["test.directory"] = tmp_path
        return mode(environ, start_response, closings)

    with BridgeThread(wrapped(app, checked), threads=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.connect()
        socket = connection.sock
        requests: list[tuple[str, bytes | list[bytes] | None]] = [
            ("GET", None),
            ("HEAD", None),
            ("POST", b"a body of known length"),
            ("POST", [b"a body ", b"in chunks"]),
            ("GET", None),
        ]
        for method, sent in requests:
            connection.request(method, "/", body=sent, encode_chunked=isinstance(sent, list))
            response = connection.getresponse()
            assert (response.status, response.read()) == (status, b"" if method == "HEAD" else body)
            assert "X-First" not in response.headers
            assert connection.sock is socket
        connection.close()
    assert closings.are(len(requests))
    assert [record.getMessage() for record in caplog.records if record.name != "tornado.access"] == []
    # There the checker complains of what was never closed.
    assert capsys.readouterr().err == ""


def broken(*chunks: Any) -> Iterator[Any]:
    yield from chunks
    raise LookupError("on purpose")


@served_both_ways
@pytest.mark.parametrize(
    ("chunks", "announced", "received"),
    [
        (lambda: broken(), None, None),
        (lambda: broken(b"hel"), None, b"hel"),
        (lambda: broken(b"hel"), 5, b"hel"),
        (lambda: iter([b"hel"]), 5, b"hel"),
        (lambda: iter([b"hello", b"surplus"]), 5, b"hello"),
        (lambda: iter([b"hello", "text"]), None, b"hello"),
        (lambda: iter(["text"]), None, None),
    ],
    ids=["raises", "raises late", "raises early", "too short", "too long", "text late", "text"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_ending_closes_once(
    chunks: Callable[[], Iterator[Any]], announced: int | None, received: bytes | None, method: str, checked: bool
) -> None:
    closings = Closings()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = [] if announced is None else [("Content-Length", str(announced))]
        start_response("200 OK", [*PLAIN, *length])
        return Body(closings, chunks())

    with BridgeThread(wrapped(app, checked), threads=1) as server:
        client = server.send(GET.replace(b"GET", method.encode()))
        response = http.client.HTTPResponse(client, method=method)
        response.begin()
        try:
            body = response.read()
        except http.client.IncompleteRead as cut:
            body = cut.partial
        client.close()
        assert response.status == (500 if received is None else 200)
        if method == "GET" and received is not None:
            assert body == received
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
    assert closings.are(1)


@served_both_ways
def test_a_client_that_left_before_the_answer(checked: bool) -> None:
    closings = Closings()
    entered, go_on = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.set()
        assert go_on.wait(20)
        start_response("200 OK", PLAIN)
        return Body(closings, (bytes(100_000) for _ in range(10)))

    with BridgeThread(wrapped(app, checked), threads=1) as server:
        client = server.send(GET)
        assert entered.wait(30)
        client.close()
        wait_until(lambda: not server.bridge.exchanges.open, "the client is seen to have left")
        go_on.set()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
    assert closings.are(1)


@served_both_ways
def test_write_raises_when_the_client_has_left(checked: bool) -> None:
    raised: list[BaseException] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        try:
            while True:
                write(bytes(100_000))
        except ConnectionError as error:
            raised.append(error)
            raise

    with BridgeThread(wrapped(app, checked), threads=1) as server:
        client = server.send(GET)
        assert client.recv(1)
        client.close()
        wait_until(lambda: len(raised) == 1, "the application learns it")


@served_both_ways
def test_a_second_thought_after_the_head_raises_the_first_mistake(
    checked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"first"
        try:
            raise LookupError("on purpose")
        except LookupError:
            start_response("500 Oops", PLAIN, sys.exc_info())
        yield b"never sent"

    with (
        BridgeThread(wrapped(app, checked), threads=1) as server,
        pytest.raises(http.client.IncompleteRead) as cut,
    ):
        server.request()
    assert cut.value.partial == b"first"
    assert "LookupError: on purpose" in caplog.text
