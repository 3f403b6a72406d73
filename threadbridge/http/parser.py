"""Parses HTTP/1.1 requests: llhttp reads the heads, `request_rules` checks them, and bodies are framed here."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import httptools
from tornado.httputil import HTTPHeaders, RequestStartLine

from threadbridge.http.bad_request import BadRequest, too_large
from threadbridge.http.chunked_body import ChunkedBody
from threadbridge.http.request_rules import (
    MAX_METHOD,
    MAX_NAME,
    check_field,
    check_host,
    check_transfer_coding,
    combine,
    end_of_method,
    expects_continue,
    keeps_alive,
    origin_form,
    version_of,
)

# This server accepts any method, but llhttp knows only some: for others it is fed POST, which has the same framing.
_METHODS_OF_LLHTTP = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_EMPTY_LINES = b"\r\n\r\n"

# How many bytes of a request line that is refused are logged.
LOGGED = 1000
# Parser states.
HEAD: Final = 0
LENGTH: Final = 1
CHUNKS: Final = 2
DONE: Final = 3


class Request:
    """One request, as far as it has been received."""

    __slots__ = ("body", "complete", "error", "expects_continue", "headers", "keep_alive", "start_line")

    def __init__(self) -> None:
        # Set together when the head is complete.
        self.start_line: RequestStartLine | None = None
        self.headers = HTTPHeaders()
        self.keep_alive = False
        self.expects_continue = False
        # The decoded part of its body that has not been delivered yet.
        self.body = b""
        self.complete = False
        # Set if the request is refused, or the bytes cannot become one; nothing follows it.
        self.error: BadRequest | None = None


class RequestParser:
    """Turns the bytes of a connection into `Request` objects, one after the other.

    llhttp parses the heads. This class decides where a head, a body and a request end, and never searches the data of
    bodies.

    :param max_header_size: bytes of a request's head, and of its framing beyond what its body justifies.
    :param max_body_size: bytes of a request's body.

    Call `feed` with bytes, then `parse`; when `request` is complete and answered, `next` goes on to the following one.
    """

    def __init__(self, max_header_size: int, max_body_size: int) -> None:
        # The request whose first byte has arrived; `next` ends it.
        self.request: Request | None = None
        self._max_header_size = max_header_size
        self._max_body_size = max_body_size
        # The bytes that have been fed, and how many of them are parsed.
        self._data = b""
        self._position = 0
        self._parser = self._new_parser()
        self._parser_is_spent = False
        self._part = HEAD
        # From the head that is being received; "" until it has arrived.
        self._method = ""
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        # The head that is being received: if all of it arrived at once, and otherwise its bytes so far.
        self._whole_head = b""
        self._head = bytearray()
        # The size of the head of the request whose body is being received.
        self._delivered_head = 0
        # The last valid host: most connections use no other.
        self._host = ""
        # Bytes still to come of a body with a length.
        self._remaining = 0
        self._chunks: ChunkedBody | None = None

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # `keeps_alive` decides whether the connection stays open, since llhttp also heeds Proxy-Connection, and
        # `version_of` checks versions.
        parser.set_dangerous_leniencies(lenient_keep_alive=True, lenient_version=True)
        return parser

    @property
    def unparsed(self) -> int:
        """Number of bytes that have been fed but not parsed."""
        return len(self._data) - self._position

    @property
    def held(self) -> int:
        """Bytes of memory, approximately, that the fed data takes, without the delivered part of a body."""
        request = self.request
        # llhttp keeps a second copy of an incomplete head.
        held = len(self._data) + 2 * len(self._head) + self._delivered_head
        return held if request is None else held + len(request.body)

    @property
    def _received_head(self) -> bytes:
        return self._whole_head or bytes(self._head)

    @property
    def request_line(self) -> str:
        """The request line that is being received, as far as it has arrived and up to a bound: for the log only."""
        return self._received_head[:LOGGED].removeprefix(b"\r\n").partition(b"\r\n")[0].decode("latin-1")

    def feed(self, data: bytes) -> None:
        """Add the next bytes, for `parse`."""
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        self._data = data
        self._position = 0

    def take_unparsed(self) -> bytes:
        """Remove and return the bytes behind the request, which belong to another protocol."""
        data, self._data = self._data[self._position :], b""
        self._position = 0
        return data

    def next(self) -> None:
        """Go on to the next request: this one is complete and answered."""
        self.request = None
        self._part = HEAD

    def drop(self) -> None:
        """Stop parsing, and drop all bytes that have been fed."""
        if self.request is None:
            self.request = Request()
        self.request.headers = HTTPHeaders()
        self.request.body = self._data = b""
        self._position = 0
        self._delivered_head = 0
        self._whole_head = b""
        self._head = bytearray()
        self._fields = []
        self._part = DONE
        self._parser = self._new_parser()

    def parse(self) -> bool:
        """Parse up to the end of the request at most; returns whether there is more to parse.

        It stops after `CHUNKS_AT_ONCE` chunks, so that other connections have their turn. If the bytes are not a valid
        request, the reason becomes the request's ``error``.
        """
        try:
            if self._part == HEAD:
                self._parse_head()
            if self._part == LENGTH:
                self._parse_length()
                return False
            return self._part != DONE and self._part != HEAD and self._parse_chunks()
        except BadRequest as refusal:
            self._refuse(refusal)
            return False

    def _refuse(self, error: BadRequest) -> None:
        if self.request is None:
            self.request = Request()
        self.request.error = error
        self._part = DONE
        self._data = b""
        self._position = 0

    # Heads.

    def _parse_head(self) -> None:
        """Feed llhttp up to the end of the head, as far as it has arrived."""
        if self._position == len(self._data):
            return
        if self._parser_is_spent:
            # It has not seen the body, and would mistake the next head for one.
            self._parser = self._new_parser()
            self._parser_is_spent = False
        data, start = self._data, self._position
        end = self._end_of_head(data, start)
        piece = data if not start and end == len(data) else data[start:end]
        self._position = end
        if end == len(data):
            self._data = b""
            self._position = 0
        if not self._head and piece.endswith(_EMPTY_LINES):
            self._whole_head = piece
            begins_empty = piece.startswith(_EMPTY_LINES)
        else:
            self._head += piece
            begins_empty = self._head.startswith(_EMPTY_LINES)
        if begins_empty:
            raise BadRequest(
                HTTPStatus.BAD_REQUEST, "more than one empty line before the request line (RFC 9112, section 2.2)"
            )
        try:
            self._parser.feed_data(piece if self._method else self._take_method(piece))
        except httptools.HttpParserUpgrade:
            # What follows belongs to another protocol only if the response says so.
            self._parser_is_spent = True
        except httptools.HttpParserCallbackError as error:
            # httptools wraps the exceptions of the callbacks below.
            refusal = error.__context__
            if not isinstance(refusal, BadRequest):
                raise
            raise refusal from None
        except httptools.HttpParserError as error:
            raise BadRequest(HTTPStatus.BAD_REQUEST, str(error)) from None
        if self._part == HEAD:
            self._check_size()
            if self._whole_head or self._head.endswith(_EMPTY_LINES):
                # llhttp waits for the rest of the HTTP/2 preface.
                raise BadRequest(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request")

    def _end_of_head(self, data: bytes, start: int) -> int:
        if self._head:
            # The empty line may be split anywhere.
            tail = bytes(self._head[-3:])
            cut = (tail + data[start : start + 3]).find(_EMPTY_LINES)
            if cut >= 0:
                return start + cut + len(_EMPTY_LINES) - len(tail)
        found = data.find(_EMPTY_LINES, start)
        return len(data) if found < 0 else found + len(_EMPTY_LINES)

    def _take_method(self, piece: bytes) -> bytes:
        """Return the bytes to feed to llhttp; b"" until the method is known."""
        if self._whole_head:
            end = piece.find(b" ", 0, MAX_METHOD)
            name = _METHODS_OF_LLHTTP.get(piece[: max(end, 0)])
            if name is not None:
                self._method = name
                return piece
        head = self._received_head
        start_of_head = head[: MAX_METHOD + 3]
        # One empty line in front is allowed: RFC 9112, section 2.2.
        if b"\r\n".startswith(start_of_head):
            return b""
        if self.request is None:
            self.on_message_begin()
        start = 2 if head.startswith(b"\r\n") else 0
        end = start_of_head.find(b" ", start)
        method = start_of_head[start : max(end, start)]
        if method in _METHODS_OF_LLHTTP:
            self._method = _METHODS_OF_LLHTTP[method]
            return head
        end = end_of_method(start_of_head, start)
        if end < 0:
            return b""
        self._method = start_of_head[start:end].decode("ascii")
        return b"POST" + head[end:]

    # Bodies.

    def _parse_length(self) -> None:
        request, data, start = self.request, self._data, self._position
        assert request is not None
        end = min(start + self._remaining, len(data))
        piece = data if not start and end == len(data) else data[start:end]
        self._position = end
        if end == len(data):
            self._data = b""
            self._position = 0
        request.body = request.body + piece if request.body else piece
        self._remaining -= len(piece)
        if not self._remaining:
            self._complete()

    def _parse_chunks(self) -> bool:
        """Decode some chunks; returns whether there may be more to decode."""
        request, chunks = self.request, self._chunks
        assert request is not None and chunks is not None
        body, self._position, goes_on = chunks.decode(self._data, self._position)
        request.body = request.body + body if request.body else body
        if chunks.complete:
            self._complete()
        if not goes_on:
            # Otherwise the beginning of a line would keep the whole read in memory.
            self._data = self._data[self._position :]
            self._position = 0
        return goes_on

    def _complete(self) -> None:
        assert self.request is not None
        self.request.complete = True
        self._delivered_head = 0
        self._part = DONE

    # Called by httptools.

    def on_message_begin(self) -> None:
        if self.request is not None:
            return
        self.request = Request()
        self._url = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))
        check_field(name, len(self._fields))

    def on_headers_complete(self) -> None:
        request = self.request
        assert request is not None
        method, headers = self._method, request.headers
        version = version_of(self._received_head, method, self._url)
        self._check_size()
        values = combine(self._fields, headers)
        self._check_host(values, version)
        self._check_framing(values, version)
        request.expects_continue = expects_continue(values, version)
        target = origin_form(method, self._url.decode("ascii"), headers)
        request.keep_alive = keeps_alive(values, version)
        request.start_line = RequestStartLine(method, target, "HTTP/1.1" if version == "1.1" else "HTTP/1.0")
        self._fields = []
        size = max(len(self._whole_head), len(self._head))
        if self._whole_head:
            self._whole_head = b""
        else:
            self._head = bytearray()
        self._method = ""
        if self._part == HEAD:
            self._complete()
        else:
            self._delivered_head = size
            self._parser_is_spent = True

    def _check_size(self) -> None:
        if max(len(self._whole_head), len(self._head)) > self._max_header_size:
            if self._received_head.find(b"\r\n", 2, self._max_header_size) < 0:
                raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is too long (RFC 9112, section 3)")
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large")

    def _check_host(self, headers: Mapping[str, str], version: str) -> None:
        host = headers.get("Host")
        if host is None:
            if version == "1.1":
                raise BadRequest(HTTPStatus.BAD_REQUEST, "no Host header; expected one (RFC 9112, section 3.2)")
        elif host != self._host:
            check_host(host)
            self._host = host[:MAX_NAME]

    def _check_framing(self, headers: Mapping[str, str], version: str) -> None:
        coding = headers.get("Transfer-Encoding")
        if coding is not None:
            check_transfer_coding(coding, version)
            self._chunks = ChunkedBody(self._max_body_size, self._max_header_size)
            self._part = CHUNKS
            return
        self._remaining = int(headers.get("Content-Length", 0))
        if self._remaining > self._max_body_size:
            raise too_large(self._max_body_size)
        if self._remaining:
            self._part = LENGTH
