"""Every way to read a body, and every kind of target, with `wsgiref.validate` around the application."""

from __future__ import annotations

import http.client
import io
from collections.abc import Callable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import pytest

from tests.support.inprocess import BridgeThread

PLAIN = [("Content-Type", "text/plain")]

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
