"""Responses taken apart strictly: whatever a client could misunderstand is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) ([\t\x20-\x7e]*)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t\x20-\x7e]*)")
# What a response must have once at the most.
_SINGLE = frozenset({"Content-Length", "Transfer-Encoding", "Connection", "Date", "Content-Type", "Server"})


class Incomplete(Exception):
    """There is more to come; with the connection closed: the response is truncated."""


@dataclass(frozen=True)
class Response:
    """A response; its headers' names are as ``Content-Length``, whatever the server writes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_interim(self) -> bool:
        """Whether the final response follows (RFC 9110, section 15.2)."""
        return self.status < 200


def parse_responses(received: bytes, methods: Sequence[str], at_end: bool) -> list[Response]:
    """All the responses.

    ``methods`` are those of the requests, in order; past their end GET. ``at_end``: the server has closed the
    connection. Raises `Incomplete`, and ``AssertionError`` for what no server may send.
    """
    responses: list[Response] = []
    final = 0
    while received:
        method = methods[final] if final < len(methods) else "GET"
        response, received = _parse_response(received, method, at_end)
        responses.append(response)
        final += not response.is_interim
    return responses


def _parse_response(received: bytes, method: str, at_end: bool) -> tuple[Response, bytes]:
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end:
        raise Incomplete(received)
    status_line, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    assert match, f"a bad status line: {status_line!r}"
    status = int(match[1])
    headers = _parse_headers(lines)
    assert "Content-Length" not in headers or "Transfer-Encoding" not in headers, f"two framings: {head!r}"
    if status < 200 or status == 204:
        # RFC 9110, section 8.6, and RFC 9112, section 6.1.
        assert not {"Content-Length", "Transfer-Encoding"} & set(headers), f"framing of no body: {head!r}"
    if 200 <= status < 500:
        # RFC 9110, section 6.6.1. Raises ValueError for what is no date.
        assert parsedate_to_datetime(headers.get("Date", "")), f"no date: {head!r}"
    if status < 200 or status in (204, 304) or method == "HEAD":
        return Response(status, headers, b""), rest
    body, rest = _parse_body(headers, rest, at_end)
    return Response(status, headers, body), rest


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        assert match, f"a bad header line: {line!r}"
        name = match[1].decode().title()
        assert name not in headers or name not in _SINGLE, f"given twice: {line!r}"
        headers[name] = match[2].decode()
    return headers


def _parse_body(headers: Mapping[str, str], rest: bytes, at_end: bool) -> tuple[bytes, bytes]:
    if headers.get("Transfer-Encoding") == "chunked":
        return _parse_chunks(rest)
    assert "Transfer-Encoding" not in headers, headers
    if "Content-Length" in headers:
        length = int(headers["Content-Length"])
        if len(rest) < length:
            raise Incomplete(rest)
        return rest[:length], rest[length:]
    assert headers.get("Connection") == "close", f"only the connection's end can end this body: {headers}"
    if not at_end:
        raise Incomplete(rest)
    return rest, b""


def _parse_chunks(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, end, rest = rest.partition(b"\r\n")
        if not end:
            raise Incomplete(size)
        length = int(size, 16)
        if len(rest) < length + 2:
            raise Incomplete(rest)
        assert rest[length : length + 2] == b"\r\n", f"a bad chunk: {rest!r}"
        body += rest[:length]
        rest = rest[length + 2 :]
        if length == 0:
            return body, rest
