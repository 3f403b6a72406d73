"""HTTP/1.1 requests out of bytes: llhttp parses, and what it lets pass is checked here against RFC 9110 and 9112."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus

import httptools
from tornado.httputil import HTTPHeaders, RequestStartLine

# RFC 3986, section 3.2.2 and 3.2.3: reg-name or IP-literal, and a port. Empty is allowed (RFC 9110, section 7.2).
_HOST = re.compile(r"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})*+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?").fullmatch
# A method of any name is passed on, but llhttp knows only some: of others it gets POST to read, which frames the same.
_METHODS_OF_LLHTTP = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"})
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*+")
MAX_METHOD = 32
# Fields that have one value, but that proxies let pass twice (RFC 9110, sections 5.3 and 8.3).
_SINGLE = frozenset({"Content-Type"})
_EMPTY_LINE = b"\r\n\r\n"
_ABSOLUTE_FORM = re.compile(r"https?://([^/?]+)(.*)", re.IGNORECASE).fullmatch

# As many as Apache's LimitRequestFields and gunicorn's limit_request_fields.
MAX_HEADERS = 100
# How much of a request line that is refused is worth a place in the log.
LOGGED = 1000
# llhttp puts no limit on chunk extensions and trailers. Chunks of one byte need five bytes of framing each; beyond
# sixteen somebody sends framing for its own sake (Go's net/http draws the line there too).
FRAMING_PER_BYTE = 16


class BadRequest(Exception):
    """The request cannot be accepted; ``status`` answers it, and the connection cannot be used any further."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Request:
    """What has been received of one request."""

    __slots__ = ("chunks", "complete", "error", "expects_continue", "headers", "keep_alive", "start_line")

    def __init__(self) -> None:
        # Set together when the head is complete.
        self.start_line: RequestStartLine | None = None
        self.headers = HTTPHeaders()
        self.keep_alive = False
        self.expects_continue = False
        # What has come of its body and has not been delivered; most requests have none.
        self.chunks: deque[bytes] | None = None
        self.complete = False
        # The request, or what was to become one, is refused; nothing follows it.
        self.error: BadRequest | None = None


class RequestParser:
    """Turns the bytes of a connection into `Request` objects, in order.

    :param requests: where each request is put when its first byte has come; the parser goes on to fill the last one.
    :param max_header_size: bytes of a request's head, and of its framing beyond what its body justifies.
    :param max_body_size: bytes of a request's body.
    """

    def __init__(self, requests: list[Request], max_header_size: int, max_body_size: int) -> None:
        # Bytes behind a request with ``Upgrade``: another protocol's, unless `resume` says that HTTP goes on.
        self.held_back: bytes | None = None
        self._stopped = False
        self._reframing = False
        self._requests = requests
        self._max_header_size = max_header_size
        self._max_body_size = max_body_size
        self._request: Request | None = None
        self._parser = self._new_parser()
        # Of the head that is being received; "" until it has come.
        self._method = ""
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        # All bytes of the head that is being received.
        self._head = bytearray()
        self._in_head = True
        # The last bytes of a head or of chunks: an empty line may be cut anywhere.
        self._tail = b""
        # How much of a body with a Content-Length is to come.
        self._remaining = 0
        self._overhead = 0
        self._body_size = 0

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # `_keeps_alive` decides what becomes of the connection. llhttp also heeds Proxy-Connection. `_version` checks
        # versions.
        parser.set_dangerous_leniencies(lenient_keep_alive=True, lenient_version=True)
        return parser

    def feed(self, data: bytes) -> None:
        """Parse the next bytes. What is wrong with them becomes the `Request.error` of the last request.

        llhttp gets them in pieces, such that a head and a request always end with a piece: it does not tell where.
        """
        start = 0
        while start < len(data) and not self._stopped:
            if self.held_back is not None:
                self.held_back += data[start:]
                return
            end = self._end_of_piece(data, start)
            self._feed_piece(data[start:end])
            start = end

    def _end_of_piece(self, data: bytes, start: int) -> int:
        if self._remaining:
            return min(start + self._remaining, len(data))
        # Heads, and bodies in chunks, end in an empty line; in chunks there may be others.
        if self._tail:
            cut = (self._tail + data[start : start + 3]).find(_EMPTY_LINE)
            if cut >= 0:
                return start + cut + len(_EMPTY_LINE) - len(self._tail)
        found = data.find(_EMPTY_LINE, start)
        return len(data) if found < 0 else found + len(_EMPTY_LINE)

    def _feed_piece(self, piece: bytes) -> None:
        self._tail = (self._tail + piece)[-3:]
        if self._in_head:
            self._head += piece
        else:
            self._overhead += len(piece)
        try:
            if self._in_head and not self._method:
                piece = self._take_method(piece)
            self._parser.feed_data(piece)
            self._check_size()
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except httptools.HttpParserCallbackError as error:
            # Raised around what the callbacks below raise.
            refusal = error.__context__
            if not isinstance(refusal, BadRequest):
                raise
            self._refuse(refusal)
        except BadRequest as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            self._refuse(BadRequest(HTTPStatus.BAD_REQUEST, str(error)))

    def _refuse(self, error: BadRequest) -> None:
        self._stopped = True
        if self._request is None:
            self.on_message_begin()
        assert self._request is not None
        self._request.error = error

    @property
    def request_line(self) -> str:
        """What has come of the first line of the head that is being received, up to a bound: for the log only."""
        return self._head[:LOGGED].removeprefix(b"\r\n").partition(b"\r\n")[0].decode("latin-1")

    def resume(self) -> None:
        """Go on with HTTP behind a request with ``Upgrade`` that was answered like any other."""
        if self.held_back is not None:
            held_back, self.held_back = self.held_back, None
            self.feed(held_back)

    def _upgrade(self) -> None:
        """llhttp takes what follows a request with ``Upgrade`` for another protocol's, even its body."""
        request = self._requests[-1]
        self._parser = self._new_parser()
        for name in ("Content-Length", "Transfer-Encoding"):
            if request.headers.get(name, "0").strip("0"):
                # A new parser, told of nothing but the framing, goes on with the body.
                request.complete = False
                self._request = request
                self._reframing = True
                self._parser.feed_data(f"POST / HTTP/1.1\r\n{name}: {request.headers[name]}\r\n\r\n".encode())
                self._reframing = False
                self._in_head = False
                return
        self.held_back = b""

    def _take_method(self, piece: bytes) -> bytes:
        """What llhttp is to read now of a head whose latest piece this is: nothing until its method is known."""
        head = bytes(self._head[: MAX_METHOD + 3])
        # One empty line in front is allowed: RFC 9112, section 2.2.
        if b"\r\n".startswith(head):
            return b""
        if self._request is None:
            self.on_message_begin()
        start = 2 if head.startswith(b"\r\n") else 0
        end = head.find(b" ", start)
        is_known = head[start : max(end, start)] in _METHODS_OF_LLHTTP
        if not is_known:
            end = _end_of_method(head, start)
            if end < 0:
                return b""
        self._method = head[start:end].decode("ascii")
        received = piece if len(piece) == len(self._head) else bytes(self._head)
        return received if is_known else b"POST" + received[end:]

    # Called by httptools.

    def on_message_begin(self) -> None:
        if self._request is not None:
            return
        self._request = Request()
        self._requests.append(self._request)
        self._url = b""
        self._fields = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._request is not None
        # Trailers are dropped: RFC 9110, section 6.5.1, forbids to merge them unless the field is known to allow it.
        if self._request.start_line is None:
            self._fields.append((name, value))
            if len(self._fields) > MAX_HEADERS:
                raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if self._reframing:
            return
        request = self._request
        assert request is not None
        method = self._method
        sent_version = self._parser.get_http_version()
        self._check_line(method, sent_version)
        version = _version(sent_version)
        self._check_size()
        headers = request.headers
        # What `headers.get` gives, at once.
        combined: dict[str, str] = {}
        hosts = 0
        for name, value in self._fields:
            field, text = _field_name(name), value.decode("latin-1").rstrip("\t ")
            hosts += field == "Host"
            # `HTTPHeaders.add` would check again what llhttp has checked.
            if field in combined:
                if field in _SINGLE:
                    raise BadRequest(HTTPStatus.BAD_REQUEST, f"several {field} headers; expected one")
                headers.add(field, text)
                combined[field] += "," + text
            else:
                headers[field] = combined[field] = text
        self._check_host(hosts, combined.get("Host", ""), version)
        self._check_framing(combined, version)
        expect = combined.get("Expect", "")
        if expect and version == "1.1":
            if expect.lower() != "100-continue":
                raise BadRequest(HTTPStatus.EXPECTATION_FAILED, "the only expectation known is 100-continue")
            request.expects_continue = True
        target = _origin_form(method, self._url.decode("ascii"), headers)
        request.keep_alive = _keeps_alive(combined, version)
        request.start_line = RequestStartLine(method, target, f"HTTP/{version}")
        self._in_head = False
        self._overhead = 0

    def _check_size(self) -> None:
        if len(self._head) > self._max_header_size:
            if self._head.find(b"\r\n", 2, self._max_header_size) < 0:
                raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is too long (RFC 9112, section 3)")
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")
        if self._overhead > self._max_header_size + FRAMING_PER_BYTE * self._body_size:
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the framing of the body is too large")

    def _check_line(self, method: str, version: str) -> None:
        """Refuse a request line that llhttp reads with leniency: other protocols, more than one space, LF in front."""
        line = b"%b %b HTTP/%b\r\n" % (method.encode(), self._url, version.encode())
        # One empty line in front is allowed: RFC 9112, section 2.2.
        if not self._head.startswith(line, 2 if self._head.startswith(b"\r\n") else 0):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the request line is malformed (RFC 9112, section 3)")

    def _check_host(self, count: int, host: str, version: str) -> None:
        if count > 1 or (not count and version == "1.1"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"{count} Host headers; expected one (RFC 9112, section 3.2)")
        if not _HOST(host):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the Host header is no host (RFC 9112, section 3.2)")

    def _check_framing(self, headers: Mapping[str, str], version: str) -> None:
        coding = headers.get("Transfer-Encoding")
        if coding is not None:
            if version == "1.0":
                raise BadRequest(HTTPStatus.BAD_REQUEST, "Transfer-Encoding in HTTP/1.0 (RFC 9112, section 6.1)")
            if coding.lower() != "chunked":
                raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "the only transfer coding known is chunked")
            self._remaining = 0
            return
        self._remaining = int(headers.get("Content-Length", 0))
        if self._remaining > self._max_body_size:
            raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._max_body_size} bytes")

    def on_body(self, data: bytes) -> None:
        request = self._request
        assert request is not None
        self._remaining -= min(len(data), self._remaining)
        self._body_size += len(data)
        self._overhead -= len(data)
        if self._body_size > self._max_body_size:
            raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._max_body_size} bytes")
        if request.chunks is None:
            request.chunks = deque()
        request.chunks.append(data)

    def on_message_complete(self) -> None:
        assert self._request is not None
        self._request.complete = True
        self._request = None
        self._in_head = True
        self._method = ""
        self._head.clear()
        self._tail = b""
        self._overhead = 0


@functools.lru_cache(maxsize=1000)
def _field_name(name: bytes) -> str:
    """A header's name, in the case that `HTTPHeaders` gives it. Clients send the same few again and again."""
    return "-".join(word.capitalize() for word in name.decode("ascii").split("-"))


def _end_of_method(head: bytes, start: int) -> int:
    """Where the method of a request line ends; -1 while more of it may come."""
    match = _TOKEN.match(head, start)
    assert match is not None
    end = match.end()
    method = head[start:end]
    if len(method) > MAX_METHOD:
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, f"the method has more than {MAX_METHOD} characters")
    if end == len(head):
        return -1
    if not method or head[end : end + 1] != b" ":
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the request line does not begin with a method (RFC 9112, section 3)")
    if method == b"CONNECT":
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is for proxies")
    if method != method.upper():
        # Werkzeug and Django would take "get" for GET, unlike this server and proxies.
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "methods in lower case are not known (RFC 9110, section 9.1)")
    return end


def _version(sent: str) -> str:
    """The version by which a request is read: a higher minor one counts as 1.1 (RFC 9110, section 2.5)."""
    if not sent.startswith("1."):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"HTTP/{sent}; expected HTTP/1.1 or HTTP/1.0")
    return "1.0" if sent == "1.0" else "1.1"


def _keeps_alive(headers: Mapping[str, str], version: str) -> bool:
    """Whether the client wants to go on with the connection (RFC 9112, section 9.3)."""
    connection = headers.get("Connection")
    if connection is None:
        return version == "1.1"
    options = [option.strip("\t ") for option in connection.lower().split(",")]
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


def _origin_form(method: str, target: str, headers: HTTPHeaders) -> str:
    """The target as path and query (RFC 9112, section 3.2); the authority of an absolute one becomes the Host."""
    if "#" in target:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the target has a fragment")
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return target
    absolute = _ABSOLUTE_FORM(target)
    if absolute is None or not _HOST(absolute[1]):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the target is neither a path nor an http or https URL")
    headers["Host"] = absolute[1]
    return absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
