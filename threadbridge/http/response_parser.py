"""Parses the HTTP/1.1 responses of other servers: llhttp reads the heads, and bodies are framed here."""

from __future__ import annotations

from typing import Final

import httptools

from threadbridge.http.chunked_body import ChunkedBody
from threadbridge.http.request_rules import BadRequest

# Of a response's head, and of its framing beyond what its body justifies: bytes. And its fields.
MAX_HEAD: Final = 65536
MAX_FIELDS: Final = 200
# Interim responses (RFC 9110, section 15.2) before the final one.
MAX_INTERIM: Final = 16
_LARGEST_BODY: Final = 2**62
_END_OF_HEAD: Final = b"\r\n\r\n"
# How the body ends.
NO_BODY: Final = 0
LENGTH: Final = 1
CHUNKS: Final = 2
CLOSE: Final = 3


class BadResponse(Exception):
    """The response breaks RFC 9110 or 9112, or a limit; the message says how."""


class Response:
    """The head of a response: its fields in order, as they were sent, and its ``Content-Length`` if it has one."""

    def __init__(self, status: int, reason: str, fields: list[tuple[str, str]], length: int | None) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields
        self.length = length

    def value_of(self, name: str) -> str:
        """Return the values of a field, whose name is given in lower case, as one list; "" if it is missing."""
        return ", ".join(value for each, value in self.fields if each.lower() == name)


class ResponseParser:
    """Turns the bytes of a connection into responses: `begin` for each request, then `parse` what arrives."""

    # The final response's head, once it has arrived.
    response: Response | None

    def __init__(self) -> None:
        self.response = None
        # Whether the response has ended, and whether the connection may carry another afterwards.
        self.complete = False
        self.keep_alive = False
        self._is_head = False
        self._interim = 0
        self._head = b""
        self._status = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._is_valid = False
        self._framing = NO_BODY
        self._remaining = 0
        self._chunks: ChunkedBody | None = None

    def begin(self, is_head: bool) -> None:
        """Expect the response to another request, whose method is HEAD or is not."""
        self.response = None
        self.complete = False
        self._is_head = is_head
        self._interim = 0

    def parse(self, data: bytes) -> bytes:
        """Parse the next bytes; returns what they contain of the body. Raises `BadResponse`."""
        while self.response is None:
            data = self._head + data if self._head else data
            found = data.find(_END_OF_HEAD)
            end = len(data) if found < 0 else found + len(_END_OF_HEAD)
            if end > MAX_HEAD:
                raise BadResponse(f"its head has more than {MAX_HEAD} bytes")
            if found < 0:
                self._head = data
                return b""
            self._head = b""
            self._parse_head(data[:end])
            data = data[end:]
        if self._framing == LENGTH:
            return self._parse_length(data)
        if self._framing == CHUNKS:
            return self._parse_chunks(data)
        if self._framing == NO_BODY and data:
            raise BadResponse("bytes follow a response that has no body")
        return data

    def end(self) -> bool:
        """Note that the server sends no more; returns whether that ends the body (RFC 9112, section 6.3)."""
        self.complete = self.response is not None and self._framing == CLOSE
        return self.complete

    def _parse_head(self, head: bytes) -> None:
        if head.count(b"\n") > MAX_FIELDS + 2:
            raise BadResponse(f"it has more than {MAX_FIELDS} header fields")
        self._fields = []
        self._status = b""
        self._is_valid = False
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            raise BadResponse("it changes to another protocol, which was not asked for") from None
        except httptools.HttpParserError as error:
            raise BadResponse(f"it is malformed: {error}") from None
        status, version = parser.get_status_code(), parser.get_http_version()
        if not self._is_valid or version not in ("1.0", "1.1"):
            raise BadResponse("it is not an HTTP/1.1 response")
        if 100 <= status < 200:
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM:
                raise BadResponse(f"an unexpected response {status}")
            return
        if not 200 <= status < 600:
            raise BadResponse(f"the status {status} has no meaning (RFC 9110, section 15)")
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._fields]
        self._begin_body(Response(status, self._status.decode("latin-1"), fields, None), version == "1.1")

    # Called by httptools.

    def on_status(self, status: bytes) -> None:
        self._status = status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value.rstrip(b"\t ")))

    def on_headers_complete(self) -> None:
        self._is_valid = True

    def _begin_body(self, response: Response, is_http_1_1: bool) -> None:
        coding, length, connection = "", "", ""
        for name, value in response.fields:
            # Few names have these lengths.
            size = len(name)
            if size == 14 and name.lower() == "content-length":
                length = value
            elif size == 17 and name.lower() == "transfer-encoding":
                coding = f"{coding}, {value.lower()}" if coding else value.lower()
            elif size == 10 and name.lower() == "connection":
                connection += f",{value.lower()}"
        options = [option.strip("\t ") for option in connection.split(",")] if connection else []
        self.keep_alive = "close" not in options and (is_http_1_1 or "keep-alive" in options)
        if length:
            # llhttp has checked that these are digits.
            response.length = int(length)
        self.response = response
        if self._is_head or response.status in (204, 304):
            self._framing = NO_BODY
            self.complete = True
        elif coding:
            if coding != "chunked" or not is_http_1_1:
                raise BadResponse(f"its transfer coding is {coding}; only chunked can be decoded")
            self._framing = CHUNKS
            self._chunks = ChunkedBody(_LARGEST_BODY, MAX_HEAD)
        elif response.length is None:
            self._framing = CLOSE
            self.keep_alive = False
        else:
            self._framing = LENGTH
            self._remaining = response.length
            self.complete = not self._remaining

    def _parse_length(self, data: bytes) -> bytes:
        self._remaining -= len(data)
        if self._remaining < 0:
            raise BadResponse("its body is longer than its Content-Length")
        self.complete = not self._remaining
        return data

    def _parse_chunks(self, data: bytes) -> bytes:
        chunks = self._chunks
        assert chunks is not None
        if self._head:
            # The beginning of a line between the chunks.
            data, self._head = self._head + data, b""
        pieces: list[bytes] = []
        position = 0
        goes_on = True
        try:
            while goes_on:
                piece, position, goes_on = chunks.decode(data, position)
                if piece:
                    pieces.append(piece)
        except BadRequest as error:
            raise BadResponse(error.reason) from None
        self.complete = chunks.complete
        self._head = data[position:]
        if self.complete and self._head:
            raise BadResponse("bytes follow its last chunk")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
