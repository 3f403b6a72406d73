"""Responses of other servers: what is understood, however it arrives, and what is refused."""

from __future__ import annotations

import pytest

from threadbridge.http.response_parser import MAX_FIELDS, MAX_HEAD, BadResponse, ResponseParser

FRAMED = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nA: b\r\n\r\n",
        b"hello",
        True,
    ),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n0\r\n\r\n", b"", False),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", True),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: <a>\r\n\r\n"
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        b"",
        True,
    ),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", b"ok", True),
]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("sent", "body", "keeps_alive"), FRAMED)
def test_a_body_ends_where_its_framing_says(sent: bytes, body: bytes, keeps_alive: bool, size: int) -> None:
    parser = ResponseParser()
    # Twice: nothing of the first must be left.
    for _ in range(2):
        parser.begin(is_head=False)
        found = b""
        for start in range(0, len(sent), size):
            assert not parser.complete
            found += parser.parse(sent[start : start + size])
        assert parser.complete and found == body
        assert parser.keep_alive == keeps_alive
        assert not parser.end()


def test_without_a_length_the_end_of_the_connection_ends_the_body() -> None:
    parser = ResponseParser()
    parser.begin(is_head=False)
    assert parser.parse(b"HTTP/1.1 200 OK\r\n\r\nhel") + parser.parse(b"lo") == b"hello"
    assert not parser.complete and not parser.keep_alive
    assert parser.end() and parser.complete


def test_the_response_to_head_has_a_length_and_no_body() -> None:
    parser = ResponseParser()
    parser.begin(is_head=True)
    assert parser.parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: \xe9\r\nA: 2\r\n\r\n") == b""
    assert parser.complete and parser.response is not None
    assert parser.response.length == 5
    assert parser.response.fields == [("Content-Length", "5"), ("A", "\xe9"), ("A", "2")]
    assert parser.response.value_of("a") == "\xe9, 2"


def test_an_end_within_a_body_with_a_length_is_no_end_of_it() -> None:
    parser = ResponseParser()
    parser.begin(is_head=False)
    parser.parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
    assert not parser.end() and not parser.complete


WRONG = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status without a meaning": b"HTTP/1.1 999 OK\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "endless interim responses": b"HTTP/1.1 103 Hints\r\n\r\n" * 17,
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a folded line": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
    "LF alone": b"HTTP/1.1 200 OK\nA: b\n\r\n\r\n",
    "white space before a colon": b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "more than the length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
    "more after the last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
    "a body in 204": b"HTTP/1.1 204 No Content\r\n\r\nbody",
    "a head without end": b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD,
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
}


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG)
def test_a_wrong_response_is_refused(sent: bytes) -> None:
    parser = ResponseParser()
    parser.begin(is_head=False)
    with pytest.raises(BadResponse):
        parser.parse(sent)
