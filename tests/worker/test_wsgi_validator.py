"""Every way to answer, to read and to end that PEP 3333 knows, with `wsgiref.validate` around the application.

The checker puts an iterator of its own around what the application returns, so the server sees no list and no file;
therefore each application is also served without it.
"""

from __future__ import annotations

import gzip
import http.client
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
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
        assert entered.wait(10)
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


READS: dict[str, Callable[[Any], list[bytes]]] = {
    "read": lambda file: list(iter(lambda: file.read(10_000), b"")),
    "read too much": lambda file: [file.read(10_000_000), file.read(1)],
    "readline": lambda file: list(iter(file.readline, b"")),
    "readline of a size": lambda file: list(iter(lambda: file.readline(7), b"")),
    "readlines": lambda file: [*file.readlines(), b"|", *file.readlines()],
    "readlines with a hint": lambda file: [*file.readlines(50), b"|", *file.readlines(50)],
    "iteration": lambda file: list(file),
    "a mixture": lambda file: [file.readline(), file.read(3), *file.readlines(20), file.readline(2), *file],
    "nothing": lambda file: [],
    "a little": lambda file: [file.read(5)],
}


@pytest.mark.parametrize("lines", [0, 3, 300_000], ids=["empty", "in memory", "on disk"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_every_way_to_read(lines: int, chunked: bool) -> None:
    body = (
        b"".join(b"line %d\n" % number for number in range(lines)) + b"an end without a newline"[: 24 * min(lines, 1)]
    )

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        parts = READS[environ["QUERY_STRING"].replace("+", " ")](environ["wsgi.input"])
        start_response("200 OK", [*PLAIN, ("X-Parts", str(len(parts)))])
        return [b"".join(parts)]

    with BridgeThread(validator(app), threads=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for name, read in READS.items():
            sent = (body[start : start + 60_000] for start in range(0, len(body), 60_000)) if chunked else body
            connection.request("POST", "/?" + name.replace(" ", "+"), body=sent, encode_chunked=chunked)
            response = connection.getresponse()
            # What a file in memory gives; the checker's iteration is readline() until the end, and so gives the same.
            expected = read(io.BytesIO(body))
            assert response.read() == b"".join(expected), name
            assert response.headers["X-Parts"] == str(len(expected)), name
        connection.close()


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


@pytest.mark.parametrize(
    "target", ["/", "/?", "//a//b", "/%2F%3F%00", "/%E2%82%AC", "/a;b=c,d", "http://a.example", "*"]
)
def test_every_kind_of_target(target: str) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [environ["PATH_INFO"].encode("latin-1")]

    with BridgeThread(validator(app), threads=1) as server:
        received = server.exchange(f"OPTIONS {target} HTTP/1.0\r\nHost: a.example\r\n\r\n".encode())
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    paths = {"/?": "/", "/%2F%3F%00": "//?\0", "/%E2%82%AC": "/\u20ac", "http://a.example": "/", "*": ""}
    assert received.partition(b"\r\n\r\n")[2].decode() == paths.get(target, target)


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
@pytest.mark.parametrize("chunks", [[b"hello"], iter([b"hel", b"lo"])], ids=["list", "stream"])
def test_205_has_no_body(
    method: str, length: list[tuple[str, str]], chunks: Iterable[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("205 Reset Content", [*PLAIN, *length])
        return chunks

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
