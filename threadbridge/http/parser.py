"""Parses HTTP/1.1 requests: llhttp reads the heads, `request_rules` checks them, and bodies are framed here."""

from __future__ import annotations

from typing import Final

import httptools
from tornado.httputil import HTTPHeaders, RequestStartLine

from threadbridge.http.chunked_body import ChunkedBody
from threadbridge.http.fields import headers_of
from threadbridge.http.request_rules import (
    MAX_HEADERS,
    MAX_NAME,
    BadRequest,
    check_host,
    check_transfer_coding,
    combine,
    expects_continue,
    keeps_alive,
    method_of,
    origin_form,
    too_large,
    version_of,
)

# This server accepts any method, but llhttp knows only some: for others it is fed POST, which has the same framing.
_METHODS_OF_LLHTTP: Final = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
}
_LONGEST_METHOD: Final = 7
_END_OF_HEAD: Final = b"\r\n\r\n"

_new_tuple: Final = tuple.__new__

# How many bytes of a refused request line are logged.
LOGGED: Final = 1000
# What comes next.
HEAD: Final = 0
LENGTH: Final = 1
CHUNKS: Final = 2
DONE: Final = 3


class Request:
    """One request, as far as it has been received."""

    # Set when the head is complete, together with `start_line`.
    headers: HTTPHeaders

    def __init__(self) -> None:
        self.start_line: RequestStartLine | None = None
        self.keep_alive = False
        self.expects_continue = False
        # The decoded part of its body that has not been delivered yet.
        self.body = b""
        self.complete = False


class HeadReader:
    """Reads complete heads with llhttp, for all connections of a server: no state is left between two heads.

    ``url`` and ``fields`` are those of the last head.
    """

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self._is_valid = False
        # Those that read the last head and may read the next one.
        self._last: httptools.HttpRequestParser | None = None
        self._next: httptools.HttpRequestParser | None = None

    def read(self, head: bytes) -> None:
        """Read a head, from the method to the empty line. Raises `BadRequest` if it is not valid."""
        parser, self._next = self._next, None
        if parser is None:
            parser = httptools.HttpRequestParser(self)
            # What `request_rules` decides: persistence (llhttp also heeds Proxy-Connection), versions, codings.
            parser.set_dangerous_leniencies(
                lenient_keep_alive=True, lenient_version=True, lenient_transfer_encoding=True
            )
        self._last = parser
        self._is_valid = False
        self.fields = []
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # What follows belongs to another protocol only if the response says so.
            self._last = None
        except httptools.HttpParserError as error:
            raise BadRequest(400, str(error)) from None
        if not self._is_valid:
            # llhttp waits for the rest of the HTTP/2 preface.
            raise BadRequest(400, "this is not an HTTP/1.1 request")

    def has_no_body(self) -> None:
        """Note that nothing else belongs to the last head: what read it is ready for the next.

        It is not fed bodies, and would mistake the next head for one.
        """
        self._next = self._last

    # Called by httptools.

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_valid = True


class RequestParser:
    """Turns the bytes of a connection into `Request` objects, one after the other.

    Call `feed` with bytes, then `parse`; when `request` is complete and answered, `next` goes on to the following one.

    :param heads: may be shared with other parsers of the same thread.
    :param max_header_size: bytes of a request's head, and of its framing beyond what its body justifies.
    """

    def __init__(self, heads: HeadReader, max_header_size: int, max_body_size: int) -> None:
        self._heads = heads
        # The request whose first byte has arrived; `next` ends it.
        self.request: Request | None = None
        self._max_header_size = max_header_size
        self._max_body_size = max_body_size
        # The bytes that have been fed, and how many of them are parsed.
        self._data = b""
        self._position = 0
        self._part = HEAD
        # Of the head that is being received: whether an empty line preceded it, and up to where its end was searched.
        self._skipped_line = False
        self._searched = 0
        # The complete head that is being parsed.
        self._head = b""
        # The size of the head whose body is being received.
        self._delivered_head = 0
        # The last valid host: most connections use no other.
        self._host = ""
        # Bytes still to come of a body with a length.
        self._remaining = 0
        self._chunks: ChunkedBody | None = None

    @property
    def unparsed(self) -> int:
        """Number of bytes that have been fed but not parsed."""
        return len(self._data) - self._position

    @property
    def held(self) -> int:
        """Bytes of memory, approximately, that the fed data takes, without the delivered part of a body."""
        held = len(self._data) + self._delivered_head
        return held if self.request is None else held + len(self.request.body)

    @property
    def request_line(self) -> str:
        """The request line that is being received, as far as it has arrived and up to a bound: for the log only."""
        head = self._head or self._data[self._position :]
        return head[:LOGGED].partition(b"\r\n")[0].decode("latin-1")

    def feed(self, data: bytes) -> None:
        """Add the next bytes, for `parse`."""
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        self._data = data
        self._position = 0

    def take_unparsed(self) -> bytes:
        """Remove and return the bytes behind the request, which belong to another protocol."""
        return self._take(len(self._data))

    def _take(self, end: int) -> bytes:
        """Remove and return the bytes up to this position, without a copy if there are no others."""
        data, start = self._data, self._position
        if end < len(data):
            self._position = end
            return data[start:end]
        self._data = b""
        self._position = 0
        return data[start:] if start else data

    def next(self) -> None:
        """Go on to the next request: this one is complete and answered."""
        self.request = None
        self._skipped_line = False
        self._part = HEAD

    def drop(self) -> None:
        """Stop parsing, after a refusal, and drop all bytes that have been fed."""
        if self.request is None:
            self.request = Request()
        self.request.headers = headers_of({}, {})
        self.request.body = self._head = self._data = b""
        self._position = self._delivered_head = 0
        self._part = DONE

    def parse(self) -> bool:
        """Parse up to the request's end, or some chunks; returns whether there is more. Raises `BadRequest`."""
        if self._part == HEAD and self._position < len(self._data):
            self._parse_head()
        if self._part == LENGTH:
            self._parse_length()
            return False
        return self._part == CHUNKS and self._parse_chunks()

    def _parse_head(self) -> None:
        data, start = self._data, self._position
        if data.startswith(b"\r\n", start):
            # One empty line in front is allowed: RFC 9112, section 2.2.
            if self._skipped_line or data.startswith(_END_OF_HEAD, start):
                raise BadRequest(400, "more than one empty line before the request line (RFC 9112, section 2.2)")
            self._skipped_line = True
            start = self._position = start + 2
        if start == len(data) or (start == len(data) - 1 and data.endswith(b"\r")):
            return
        if self.request is None:
            self.request = Request()
        found = data.find(_END_OF_HEAD, start + self._searched)
        end = len(data) if found < 0 else found + len(_END_OF_HEAD)
        if end - start > self._max_header_size:
            if data.find(b"\r\n", start, start + self._max_header_size) < 0:
                raise BadRequest(414, "the request line is too long (RFC 9112, section 3)")
            raise BadRequest(431, "the request's head is too large")
        if found < 0:
            self._data = data = data[start:]
            self._position = 0
            # What looks like another protocol is refused at once; all other rules wait until the head is complete.
            method_of(data)
            searched = self._searched
            if data.count(b"\n", searched) != data.count(b"\r\n", max(0, searched - 1)):
                raise BadRequest(400, "a line ends in LF without CR (RFC 9112, section 2.2)")
            self._searched = max(0, len(data) + 1 - len(_END_OF_HEAD))
            return
        self._searched = 0
        head = self._head = self._take(end)
        end = head.find(b" ", 0, _LONGEST_METHOD + 1)
        method = _METHODS_OF_LLHTTP.get(head[:end]) if end > 0 else None
        if method is not None:
            self._read_fields(head)
        else:
            method = method_of(head)
            end = len(method)
            self._read_fields(b"POST" + head[end:])
        self._begin_body(method, head)

    def _read_fields(self, head: bytes) -> None:
        # The lines besides headers are the first and the last.
        if head.count(b"\n") > MAX_HEADERS + 2:
            raise BadRequest(431, f"more than {MAX_HEADERS} headers")
        self._heads.read(head)

    def _begin_body(self, method: str, head: bytes) -> None:
        """Check the complete head, and find out how the body is framed."""
        request = self.request
        assert request is not None
        url = self._heads.url
        version = version_of(head, method, url)
        lines: dict[str, list[str]] = {}
        values = combine(self._heads.fields, lines)
        host = values.get("Host")
        if host is None:
            if version == "1.1":
                raise BadRequest(400, "no Host header; expected one (RFC 9112, section 3.2)")
        elif host != self._host:
            check_host(host)
            self._host = host[:MAX_NAME]
        coding = values.get("Transfer-Encoding")
        if coding is not None:
            check_transfer_coding(coding, version)
            self._chunks = ChunkedBody(self._max_body_size, self._max_header_size)
            self._part = CHUNKS
        else:
            self._remaining = int(values.get("Content-Length", 0))
            if self._remaining > self._max_body_size:
                raise too_large(self._max_body_size)
            if self._remaining:
                self._part = LENGTH
        request.expects_continue = expects_continue(values, version)
        request.keep_alive = keeps_alive(values, version)
        request.headers = headers_of(lines, values)
        target = origin_form(method, url.decode("ascii"), request.headers)
        # The constructor of a `NamedTuple`, in Python, takes ten times as long.
        line = _new_tuple(RequestStartLine, (method, target, "HTTP/1.1" if version == "1.1" else "HTTP/1.0"))
        request.start_line = line
        self._head = b""
        if self._part == HEAD:
            self._heads.has_no_body()
            self._complete()
        else:
            self._delivered_head = len(head)

    def _parse_length(self) -> None:
        request = self.request
        assert request is not None
        piece = self._take(min(self._position + self._remaining, len(self._data)))
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
            self.feed(b"")
        return goes_on

    def _complete(self) -> None:
        assert self.request is not None
        self.request.complete = True
        self._delivered_head = 0
        self._part = DONE
