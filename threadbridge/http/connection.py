"""An HTTP/1.1 connection on Tornado's `IOStream`, strict in what it accepts."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any, Protocol, cast

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.background import Background
from threadbridge.http.bad_request import BadRequest
from threadbridge.http.date import http_date
from threadbridge.http.memory import Memory
from threadbridge.http.parser import Request, RequestParser
from threadbridge.http.response_head import ResponseHead, response_head
from threadbridge.http.sending import Sending
from threadbridge.http.stream import PushStream

logger = logging.getLogger("threadbridge")
_failed, _short = RepeatedLog(logger), RepeatedLog(logger)

# How long to read on, and throw away, after a refusal: a connection closed with unread bytes is reset, and the reset
# may overtake the answer (RFC 9112, section 9.6). nginx's lingering_timeout and lingering_time.
LINGER_PAUSE = 5.0
LINGER_TIME = 30.0
# How long idle connections stay open when the server drains: a request that a proxy has just sent is still answered.
DRAIN_LINGER = 1.0

# Connections that hold less are not refused for the sake of memory.
WORTH_REFUSING = 4096

_UNSAFE = re.compile(r"[\r\n\0]").search


@dataclass(frozen=True)
class Limits:
    """What a client may take of a connection: sizes in bytes, times in seconds.

    The times count from the last byte that moved, except ``header_timeout``, which counts from a head's first byte.
    A byte of a response has moved when the client's system has it, see `Sending`.
    """

    max_header_size: int = 65536
    max_body_size: int = 1024**3
    header_timeout: float = 30.0
    # Longer than nginx keeps an idle connection to an upstream (60), so that it is never closed under a request.
    idle_timeout: float = 75.0
    body_timeout: float = 60.0
    send_timeout: float = 60.0
    # Bytes a second of a body in either direction, on average and after as long a start as a pause may take; Apache's
    # MinRate.
    min_rate: int = 500
    # Bodies that take longer are cut, whatever their rate. As above, only the time counts that the client takes.
    transfer_timeout: float = 14400.0
    # None for what `Connections` makes of the limit of descriptors.
    max_connections: int | None = None
    max_connections_per_client: int | None = None


class Server(Protocol):
    """What a connection needs of the server that accepted it."""

    limits: Limits
    draining: bool
    background: Background
    memory: Memory
    # The account of responses that their clients have not taken.
    unread: Memory

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate: ...

    def on_close(self, server_conn: object) -> None: ...

    def refused(self, context: Any, request_line: str, status: int, sent: int) -> None: ...

    def make_room(self) -> None: ...


class HTTP1Connection:
    """One client's connection: requests in, responses out, in order. Loop side, all of it.

    A `tornado.httputil.HTTPConnection` by its methods, but for its base class, as `Exchange` is a delegate. It offers
    what `tornado.http1connection.HTTP1Connection` offers to a request's delegate. `deadline`, monotonic seconds, is the
    time by which something must move; the server looks at it now and then and calls `expire`.
    """

    def __init__(self, stream: PushStream, context: object, server: Server) -> None:
        self.stream = stream
        self.context = context
        # The status with which the rest of a request was refused, for the delegate that gets to know only of its end.
        self.refused_with = 0
        self._server = server
        self._limits = server.limits
        self._time = asyncio.get_running_loop().time
        self._parser = RequestParser(self._limits.max_header_size, self._limits.max_body_size)
        # The delegate of the current request; None until its head is complete.
        self._delegate: HTTPMessageDelegate | None = None
        self._delivered = False
        self._paused = False
        self._paused_at = 0.0
        self._lingering_until: float | None = None
        self._detached = False
        self._close_callback: Callable[[], None] | None = None
        # Once the client has kept the response waiting.
        self._sending: Sending | None = None
        self._reset_response()
        # Bytes of memory that the parser takes, as far as the server's account knows.
        self._parser_held = 0
        self.deadline = self._time() + self._limits.header_timeout
        stream.set_close_callback(self._on_stream_closed)
        stream.receive(self._on_data, self._on_end)

    def _reset_response(self) -> None:
        self._delegate = None
        self._delivered = False
        # What the delegate has set for this request's body.
        self._body_limit: int | None = None
        self._body_size = 0
        # Bytes of memory that the delegate keeps of it, and has counted in the server's account; its delegate's to set.
        self.body_held = 0
        self._body_deadline = math.inf
        self._close_callback = None
        # Whether the request is answered though its client sends no more and may have left; its delegate's to set.
        self.answers_after_end = False
        self._status = 0
        self._head_written = False
        self._finished = False
        self._chunked = False
        self._close_after = False
        self._remaining: int | None = None
        self._written: Future[None] | None = None
        # When the body was first waited for; 0.0: it has not.
        self._body_since = 0.0
        if self._sending is not None:
            self._sending.release()
            self._sending = None

    # Requests in.

    def _on_data(self, data: bytes) -> None:
        if self._lingering_until is not None:
            self.deadline = min(self._time() + LINGER_PAUSE, self._lingering_until)
            return
        if self.idle:
            self.deadline = self._time() + self._limits.header_timeout
        self._parser.feed(data)
        if self._delivered or self._paused or self._finished:
            # One read may wait here behind the request that is being answered; the rest waits in the kernel.
            self.stream.pause_reading()
            self._account()
        else:
            self._advance()

    def _on_end(self) -> bool:
        """The client sends no more; whether it is answered all the same.

        It may have left, or only have closed its own side of the connection (RFC 9112, section 9.6).
        """
        if self._paused:
            # Called again after the pending data is delivered; only then do we know whether to answer.
            return True
        request = self._parser.request
        if request is None or not request.complete or self._detached or self._lingering_until is not None:
            return False
        self._close_after = True
        return self._finished or self.answers_after_end

    def _advance(self) -> None:
        """Deliver what has been received of the request whose turn it is; read on if that is not all of it."""
        if self._delivered or self._paused or self._finished or self.stream.closed():
            return
        parser = self._parser
        has_more = parser.parse()
        request = parser.request
        if request is None:
            self._account()
            self.stream.resume_reading()
            return
        if self._delegate is None and request.start_line is not None:
            self._begin(request)
        if request.body and self._delegate is not None and self._may_deliver():
            body, request.body = request.body, b""
            self._deliver_data(self._delegate, body)
        self._account()
        if request.start_line is not None and (self._delegate is None or not self._may_deliver()):
            # Also when the delegate failed, and has been answered or cut.
            return
        if request.error is not None:
            self._refuse(request.error)
        elif request.complete:
            self._delivered = True
            self.deadline = math.inf
            if not parser.unparsed:
                # Nothing is expected, but that the client leaves must be noticed.
                self.stream.resume_reading()
            assert self._delegate is not None
            self._deliver(self._delegate.finish)
        elif has_more:
            # Whoever sends many small chunks has them decoded between the requests of the others.
            self.stream.pause_reading()
            self._server.background.add(self._advance)
        else:
            if self._delegate is not None:
                self._set_body_deadline()
            self.stream.resume_reading()

    def _account(self) -> None:
        """Keep the account of memory; on the way of most requests there is nothing to change."""
        held = self._parser.held
        if held != self._parser_held:
            self._server.memory.add(held - self._parser_held)
            self._parser_held = held
        if held + self.body_held >= WORTH_REFUSING and self._server.memory.is_full:
            self._server.make_room()

    @property
    def held(self) -> int:
        """Bytes of memory that what has come of the request takes."""
        return self._parser_held + self.body_held

    def _set_body_deadline(self) -> None:
        """A body may pause for ``body_timeout``, and must come at ``min_rate`` after as long a start."""
        now = self._time()
        if not self._body_since:
            self._body_since = now
        limits = self._limits
        by_rate = self._body_since + limits.body_timeout + self._body_size / limits.min_rate
        in_all = min(self._body_since + limits.transfer_timeout, self._body_deadline)
        self.deadline = min(now + limits.body_timeout, by_rate, in_all)

    def refuse_for(self, reason: str) -> None:
        """Answer 503 to what has come of a request, and use the connection no further."""
        self._refuse(BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, reason))

    @property
    def is_receiving(self) -> bool:
        """Whether a request is arriving, so that it can still be refused."""
        return not (self._delivered or self._head_written or self._finished or self._lingering_until is not None)

    def _begin(self, request: Request) -> None:
        assert request.start_line is not None
        self.deadline = math.inf
        self._close_after = not request.keep_alive
        self._delegate = self._server.start_request(self, cast(HTTPConnection, self))
        self._deliver(self._delegate.headers_received, request.start_line, request.headers)
        if self._body_limit is not None and int(request.headers.get("Content-Length", 0)) > self._body_limit:
            self._refuse_body()
        elif request.expects_continue and not request.complete and not request.body and self._may_deliver():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _may_deliver(self) -> bool:
        """False if the delegate has answered early, detached the stream or asked to wait."""
        return not (self._finished or self._paused or self._detached or self.stream.closed())

    def _deliver_data(self, delegate: HTTPMessageDelegate, data: bytes) -> None:
        self._body_size += len(data)
        if self._body_limit is not None and self._body_size > self._body_limit:
            self._refuse_body()
        else:
            self._deliver(delegate.data_received, data)

    def _refuse_body(self) -> None:
        if self._may_deliver():
            reason = f"the body of this request has at most {self._body_limit} bytes"
            self._refuse(BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason))

    def set_max_body_size(self, max_body_size: int) -> None:
        """Lower the limit for the body of the request that is being received; a larger body is answered 413.

        Raises ``ValueError`` above the server's limit, `Limits.max_body_size`.
        """
        if max_body_size > self._limits.max_body_size:
            raise ValueError(
                f"the server takes bodies of {self._limits.max_body_size} bytes at most; to allow more, give it "
                f"limits=Limits(max_body_size={max_body_size})"
            )
        self._body_limit = max_body_size

    def set_body_timeout(self, body_timeout: float) -> None:
        """Give the body of the request that is being received this many seconds from now on, besides the limits."""
        self._body_deadline = self._time() + body_timeout

    def _deliver(self, method: Callable[..., Any], *arguments: object) -> None:
        """Call the delegate, and read no more until it has dealt with that if it says so by an awaitable.

        An exception there is logged and costs the client its connection, except Tornado's for a request that it cannot
        read: 400.
        """
        try:
            waiting = method(*arguments)
        except Exception as error:  # noqa: BLE001 - it is logged there
            self._delegate_failed(error)
            return
        if waiting is not None:
            self._paused = True
            self._paused_at = self._time()
            self.deadline = math.inf
            asyncio.ensure_future(waiting).add_done_callback(self._on_dealt_with)

    def _on_dealt_with(self, dealt_with: Future[None]) -> None:
        self._paused = False
        if self._body_since:
            # The client could not send meanwhile.
            self._body_since += self._time() - self._paused_at
        error = dealt_with.exception()
        if error is not None:
            self._delegate_failed(error)
        self._advance()

    def _delegate_failed(self, error: BaseException) -> None:
        if isinstance(error, HTTPInputError) and not self._head_written and not self.stream.closed():
            # Not told that the connection ends: it has no request to end.
            self._delegate = None
            self._close_callback = None
            # The message may quote the request.
            self._refuse(BadRequest(HTTPStatus.BAD_REQUEST, ascii(str(error))[1:-1]))
        else:
            _failed.log(logging.ERROR, "a request from %s failed in the server", self.context, exc_info=error)
            delegate = self._delegate
            self.close()
            if delegate is not None:
                # Its request ends too.
                self._deliver(delegate.on_connection_close)

    def _refuse(self, error: BadRequest) -> None:
        """Answer a request that cannot be accepted, and use the connection no further."""
        logger.info("refused a request from %s: %d, %s", self.context, error.status, error.reason)
        body = f"{error.status.value} {error.status.phrase}: {error.reason}\n".encode()
        if self._delegate is not None:
            self.refused_with = error.status.value
            self._deliver(self._delegate.on_connection_close)
            self._delegate = None
        else:
            request = self._parser.request
            start_line = None if request is None else request.start_line
            request_line = self._parser.request_line if start_line is None else " ".join(start_line)
            self._server.refused(self.context, request_line, error.status.value, len(body))
        fields = (("Content-Type", "text/plain; charset=utf-8"), ("Date", http_date()), ("Connection", "close"))
        head = response_head(error.status.value, error.status.phrase, fields, len(body))
        self._head_written = self._finished = True
        self._parser.drop()
        self._account()
        self._written = self._write(head.lines + b"\r\n" + body)
        if self._written is None:
            self._linger()
        else:
            self._written.add_done_callback(self._linger)

    # Responses out.

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Have the callback called when the client leaves before the response is finished."""
        self._close_callback = callback

    def send_head(self, head: ResponseHead, chunk: bytes) -> Future[None] | None:
        """Write a response's head and a first piece of its body; None when they have left, or what will tell."""
        request = self._parser.request
        assert request is not None and request.start_line is not None
        is_http_1_1 = request.start_line.version == "HTTP/1.1"
        status, lines, length, close = head
        self._status = status
        if request.start_line.method == "HEAD" or status in (204, 304) or status < 200:
            self._remaining = 0
        elif length is not None:
            self._remaining = length
        elif is_http_1_1:
            self._chunked = True
        else:
            # Only the end of the connection tells where the body ends (RFC 9112, section 6.3).
            close = True
        if close or self._server.draining or not request.complete:
            self._close_after = True
        if status == 101:
            pass
        elif self._close_after:
            lines += b"Connection: close\r\n"
        elif not is_http_1_1:
            lines += b"Connection: keep-alive\r\n"
        if self._chunked:
            lines += b"Transfer-Encoding: chunked\r\n"
        self._head_written = True
        self._written = self._write(b"".join((lines, b"\r\n", *self._framed(chunk))))
        return self._written

    def write_headers(
        self,
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> Future[None]:
        """`send_head` as `HTTPConnection` has it; the future is done when head and chunk have left.

        ``Transfer-Encoding`` and, but for status 101, ``Connection`` are the connection's to set. Raises ``ValueError``
        for a CR, LF or NUL in the status or a header, and for a ``Content-Length`` that is not all digits.
        """
        assert isinstance(start_line, ResponseStartLine)
        status = start_line.code
        not_ours = ("Transfer-Encoding", "Content-Length", "Connection" if status != 101 else "")
        fields = [(name, value) for name, value in headers.get_all() if name not in not_ours]
        if any(_UNSAFE(text) for text in (start_line.reason, *chain.from_iterable(fields))):
            raise ValueError("a CR, LF or NUL in the status or in a header")
        length = headers.get("Content-Length")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise ValueError(f"Content-Length is {length!r}; expected digits")
        head = response_head(status, start_line.reason, fields, None if length is None else int(length))
        close = headers.get("Connection", "").lower() == "close"
        return self.send_head(head._replace(close=close), chunk or b"") or _done()

    def send(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write pieces of the body; None when they have left, or what will tell."""
        self._written = self._write(*self._framed(*pieces))
        return self._written

    def write(self, chunk: bytes) -> Future[None]:
        """`send` as `HTTPConnection` has it; the future is done when the piece has left."""
        return self.send((chunk,)) or _done()

    def finish(self) -> None:
        """The response is complete."""
        if self.stream.closed():
            return
        if self._remaining:
            _short.log(
                logging.ERROR,
                "a response to %s is %d bytes shorter than its Content-Length",
                self.context,
                self._remaining,
            )
            self.close()
            return
        if self._chunked:
            self._written = self._write(b"0\r\n\r\n")
        self._finished = True
        if self._status == 101:
            # The other protocol's turn: `detach` follows.
            return
        if self._written is not None and not self._written.done():
            self._written.add_done_callback(self._after_response)
        elif self._delivered:
            self._after_response()
        else:
            # An answer before the request's end is given inside a delivery, which must return first.
            asyncio.get_running_loop().call_soon(self._after_response)

    def _framed(self, *pieces: bytes | memoryview) -> Sequence[bytes | memoryview]:
        size = sum(map(len, pieces))
        if self._remaining is not None:
            self._remaining -= size
            if self._remaining < 0:
                self.close()
                raise ValueError("the body is longer than its Content-Length")
        if self._chunked:
            return (b"%x\r\n" % size, *pieces, b"\r\n") if size else ()
        return pieces

    def _write(self, *pieces: bytes | memoryview) -> Future[None] | None:
        try:
            written = self.stream.send(*pieces)
        except StreamClosedError as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            failed.exception()
            return failed
        if written is not None:
            if self._sending is None:
                limits = self._limits
                self._sending = Sending(
                    self.stream, self._server.unread, limits.send_timeout, limits.min_rate, limits.transfer_timeout
                )
            self.deadline = self._sending.wait(self._time(), sum(map(len, pieces)))
            written.add_done_callback(self._on_flushed)
        return written

    def _on_flushed(self, written: Future[None]) -> None:
        if self.stream.closed() or self.stream.writing():
            return
        if self._sending is not None:
            self._sending.has_left(self._time())
        if not self._finished:
            self.deadline = math.inf

    def _after_response(self, written: Future[None] | None = None) -> None:
        """Go on to the next request, or close."""
        if self._detached or self.stream.closed():
            return
        # From here on, closing no longer counts as leaving before the response.
        self._close_callback = None
        request = self._parser.request
        assert request is not None
        if not request.complete or (self._close_after and self._has_more()):
            # The rest of the body, or what came behind the last request, is not wanted.
            self._linger()
        elif self._close_after:
            self.stream.close()
        else:
            self._parser.next()
            self._reset_response()
            # A response that begins while the server drains closes its connection; this one began before.
            idle_timeout = DRAIN_LINGER if self._server.draining else self._limits.idle_timeout
            self.deadline = self._time() + idle_timeout
            if self._parser.unparsed:
                self.deadline = self._time() + self._limits.header_timeout
                # Not at once: answers given on the spot would pile up one call inside the other.
                asyncio.get_running_loop().call_soon(self._advance)
            else:
                self.stream.resume_reading()

    def _has_more(self) -> bool:
        """Whether the client has sent more than the request that is answered."""
        return self.stream.paused or self._parser.unparsed > 0 or self.stream.has_unread()

    def _linger(self, written: Future[None] | None = None) -> None:
        if self.stream.closed():
            return
        now = self._time()
        self._lingering_until = now + LINGER_TIME
        self.deadline = now + LINGER_PAUSE
        if not isinstance(self.stream, SSLIOStream):
            try:
                self.stream.socket.shutdown(socket.SHUT_WR)
            except OSError:
                # The client has gone already, which is what lingering waits for.
                self.stream.close()
                return
        self.stream.resume_reading()

    # The end.

    @property
    def idle(self) -> bool:
        """Whether no request has begun to arrive since the last response."""
        return self._parser.request is None and not self._parser.unparsed and self._lingering_until is None

    @property
    def is_expendable(self) -> bool:
        """Whether nobody loses a request or a response when it is closed."""
        return self.idle or self._lingering_until is not None

    def expire(self) -> None:
        """`deadline` has come: 408 for a request that has begun to arrive, silence for all else."""
        sending = self._sending
        if sending is not None and sending.waits and self._lingering_until is None:
            now = self._time()
            self.deadline = sending.look(now)
            if self.deadline > now:
                return
            logger.info("cut a response to %s, which reads too slowly", self.context)
            # For the log, as of a request that comes too slowly: the client has its status.
            self.refused_with = HTTPStatus.REQUEST_TIMEOUT.value
            self.stream.close()
            return
        if self.idle:
            self.close_idle()
        elif self._parser.request is None or self._head_written or self._lingering_until is not None:
            self.stream.close()
        else:
            self._refuse(BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"))

    def close_idle(self) -> None:
        """Close the connection if it is idle, unless a request has arrived that has not been read yet."""
        if self.idle and not self.stream.has_unread():
            self.stream.close()

    def close(self) -> None:
        """Close the connection at once, and tell nobody: the caller knows."""
        self._close_callback = None
        self._delegate = None
        self.stream.close()

    def detach(self) -> IOStream:
        """Hand the stream over, for another protocol such as WebSocket; the connection does nothing more."""
        stream = self.stream
        stream.set_close_callback(None)
        stream.receive(None)
        self.deadline = math.inf
        self._detached = True
        _give_back(stream, self._parser.take_unparsed())
        self._release()
        self._server.on_close(self)
        return stream

    def _on_stream_closed(self) -> None:
        self.deadline = math.inf
        self._release()
        self._server.on_close(self)
        callback, self._close_callback = self._close_callback, None
        delegate, self._delegate = self._delegate, None
        if callback is not None:
            callback()
        elif delegate is not None and not self._delivered:
            delegate.on_connection_close()

    def _release(self) -> None:
        if self._parser_held:
            self._server.memory.add(-self._parser_held)
            self._parser_held = 0
        if self._sending is not None:
            self._sending.release()


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _give_back(stream: IOStream, data: bytes) -> None:
    """Put bytes back that were read from the stream; `IOStream` has no public way to do it."""
    if data:
        stream._read_buffer[:0] = data
        stream._read_buffer_size += len(data)
