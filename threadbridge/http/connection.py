"""An HTTP/1.1 connection on Tornado's `IOStream`, strict in what it accepts."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from asyncio import Future
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol, cast

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, SSLIOStream

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.background import Background
from threadbridge.http.bad_request import BadRequest
from threadbridge.http.limits import DRAIN_LINGER, LINGER_PAUSE, LINGER_TIME, WORTH_REFUSING, Limits
from threadbridge.http.memory import Memory
from threadbridge.http.parser import Request, RequestParser
from threadbridge.http.receiving import Receiving
from threadbridge.http.response import Response
from threadbridge.http.response_head import ResponseHead, head_from_tornado
from threadbridge.http.stream import PushStream

logger = logging.getLogger("threadbridge")
_failed, _short = RepeatedLog(logger), RepeatedLog(logger)


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
    """One client's connection: it receives requests and sends their responses in order. Loop side.

    It has the methods of `tornado.httputil.HTTPConnection`, and offers a request's delegate what
    `tornado.http1connection.HTTP1Connection` does. Like `Exchange`, it does not derive from Tornado's class, because
    attributes of a compiled class without such a base are faster.
    """

    def __init__(self, stream: PushStream, context: object, server: Server) -> None:
        self.stream = stream
        self.context = context
        # The status that answered a request whose body was refused; its delegate learns only that the request ended.
        self.refused_with = 0
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._parser = RequestParser(self._limits.max_header_size, self._limits.max_body_size)
        self._lingering_until: float | None = None
        self._detached = False
        # Bytes of memory that the server's account knows the parser to hold.
        self._parser_held = 0
        self._start_over()
        # The time by which the client must send something; infinite while nothing is expected of it.
        self._deadline = self._time() + self._limits.header_timeout
        stream.set_close_callback(self._on_stream_closed)
        stream.receive(self._on_data, self._on_end)

    def _start_over(self) -> None:
        """Prepare for the next request."""
        # The delegate of the current request; None until its head is complete.
        self._delegate: HTTPMessageDelegate | None = None
        # Whether the delegate has the whole request.
        self._delivered = False
        # Whether the delegate has asked to wait, and since when.
        self._paused = False
        self._paused_at = 0.0
        self._receiving: Receiving | None = None
        # Bytes of the body that the delegate keeps in memory, and has counted in the server's account; it sets this.
        self.body_held = 0
        # Whether the request is answered even though its client sends no more and may have left; the delegate sets it.
        self.answers_after_end = False
        self._close_callback: Callable[[], None] | None = None
        self._response = Response(self.stream, self._loop, self._limits, self._server.unread)

    @property
    def deadline(self) -> float:
        """The time, monotonic seconds, at which the server should call `expire` unless something moves before."""
        return min(self._deadline, self._response.deadline)

    # Requests in.

    def _on_data(self, data: bytes) -> None:
        if self._lingering_until is not None:
            self._deadline = min(self._time() + LINGER_PAUSE, self._lingering_until)
            return
        if self.idle:
            self._deadline = self._time() + self._limits.header_timeout
        self._parser.feed(data)
        if self._delivered or self._paused or self._response.finished:
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
        self._response.closes = True
        return self._response.finished or self.answers_after_end

    def _advance(self) -> None:
        """Deliver what has been received of the request whose turn it is; read on if that is not all of it."""
        if self._delivered or self._paused or self._response.finished or self.stream.closed():
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
            self._deadline = math.inf
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
                self._deadline = self._body.deadline(self._time())
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

    def refuse_for(self, reason: str) -> None:
        """Answer 503 to what has come of a request, and use the connection no further."""
        self._refuse(BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, reason))

    @property
    def is_receiving(self) -> bool:
        """Whether a request is arriving, so that it can still be refused."""
        return not (
            self._delivered
            or self._response.head_written
            or self._response.finished
            or self._lingering_until is not None
        )

    def _begin(self, request: Request) -> None:
        assert request.start_line is not None
        self._deadline = math.inf
        self._response.closes = not request.keep_alive
        self._delegate = self._server.start_request(self, cast(HTTPConnection, self))
        self._deliver(self._delegate.headers_received, request.start_line, request.headers)
        receiving = self._receiving
        if receiving is not None and int(request.headers.get("Content-Length", 0)) > receiving.max_size:
            self._refuse_body()
        elif request.expects_continue and not request.complete and not request.body and self._may_deliver():
            self._response.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _may_deliver(self) -> bool:
        """False if the delegate has answered early, detached the stream or asked to wait."""
        return not (self._response.finished or self._paused or self._detached or self.stream.closed())

    def _deliver_data(self, delegate: HTTPMessageDelegate, data: bytes) -> None:
        if self._body.accepts(len(data)):
            self._deliver(delegate.data_received, data)
        else:
            self._refuse_body()

    def _refuse_body(self) -> None:
        if self._may_deliver():
            reason = f"the body of this request has at most {self._body.max_size} bytes"
            self._refuse(BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason))

    def set_max_body_size(self, max_body_size: int) -> None:
        """Lower the limit for the body of the request that is being received; a larger body is answered 413.

        Raises ``ValueError`` above the server's limit, `Limits.max_body_size`.
        """
        self._body.set_max_size(max_body_size)

    def set_body_timeout(self, body_timeout: float) -> None:
        """Allow this many seconds from now for the rest of the request's body, in addition to the limits."""
        self._body.end_at(self._time() + body_timeout)

    @property
    def _body(self) -> Receiving:
        if self._receiving is None:
            self._receiving = Receiving(self._limits)
        return self._receiving

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
            self._deadline = math.inf
            asyncio.ensure_future(waiting).add_done_callback(self._on_dealt_with)

    def _on_dealt_with(self, dealt_with: Future[None]) -> None:
        self._paused = False
        if self._receiving is not None:
            self._receiving.resume(self._time() - self._paused_at)
        error = dealt_with.exception()
        if error is not None:
            self._delegate_failed(error)
        self._advance()

    def _delegate_failed(self, error: BaseException) -> None:
        if isinstance(error, HTTPInputError) and not self._response.head_written and not self.stream.closed():
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
        if self._delegate is not None:
            self.refused_with = error.status.value
            self._deliver(self._delegate.on_connection_close)
            self._delegate = None
        else:
            request = self._parser.request
            start_line = None if request is None else request.start_line
            request_line = self._parser.request_line if start_line is None else " ".join(start_line)
            self._server.refused(self.context, request_line, error.status.value, len(error.body))
        response = self._response
        response.head_written = response.finished = True
        self._parser.drop()
        self._account()
        # Only the time to read the refusal counts from now on.
        self._deadline = math.inf
        written = response.write(error.response)
        if written is None:
            self._linger()
        else:
            written.add_done_callback(self._linger)

    # Responses out.

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Have the callback called when the client leaves before the response is finished."""
        self._close_callback = callback

    def send_head(self, head: ResponseHead, chunk: bytes) -> Future[None] | None:
        """Write a response's head and a first piece of its body.

        Returns None if they have left, or else a future that is done when they have. Raises ``ValueError`` if the body
        is longer than its ``Content-Length``.
        """
        request = self._parser.request
        assert request is not None and request.start_line is not None
        if self._server.draining or not request.complete:
            self._response.closes = True
        try:
            return self._response.write_head(head, chunk, request.start_line)
        except ValueError:
            self.close()
            raise

    def write_headers(
        self,
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> Future[None]:
        """`send_head` as `HTTPConnection` has it; raises ``ValueError`` as `head_from_tornado` does."""
        assert isinstance(start_line, ResponseStartLine)
        return self.send_head(head_from_tornado(start_line, headers), chunk or b"") or self._done()

    def send(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write pieces of the body; returns and raises what `send_head` does."""
        try:
            return self._response.write_body(pieces)
        except ValueError:
            self.close()
            raise

    def write(self, chunk: bytes) -> Future[None]:
        """`send` as `HTTPConnection` has it; the future is done when the piece has left."""
        return self.send((chunk,)) or self._done()

    def _done(self) -> Future[None]:
        done: Future[None] = Future(loop=self._loop)
        done.set_result(None)
        return done

    def finish(self) -> None:
        """End the response; the connection goes on to the next request, or closes."""
        if self.stream.closed():
            return
        response = self._response
        missing = response.end()
        if missing:
            _short.log(
                logging.ERROR, "a response to %s is %d bytes shorter than its Content-Length", self.context, missing
            )
            self.close()
        elif response.status == 101:
            # The other protocol takes over: `detach` follows.
            pass
        elif response.written is not None and not response.written.done():
            response.written.add_done_callback(self._after_response)
        elif self._delivered:
            self._after_response()
        else:
            # A delegate that answers before the request ends is inside a delivery, which must return first.
            self._loop.call_soon(self._after_response)

    def _after_response(self, written: Future[None] | None = None) -> None:
        """Go on to the next request, or close."""
        if self._detached or self.stream.closed():
            return
        # From here on, closing no longer counts as leaving before the response.
        self._close_callback = None
        request = self._parser.request
        assert request is not None
        if not request.complete or (self._response.closes and self._has_more()):
            # The rest of the body, or what came behind the last request, is not wanted.
            self._linger()
        elif self._response.closes:
            self.stream.close()
        else:
            self._parser.next()
            self._response.release()
            self._start_over()
            # A response that begins while the server drains closes its connection; this one began before.
            idle_timeout = DRAIN_LINGER if self._server.draining else self._limits.idle_timeout
            self._deadline = self._time() + idle_timeout
            if self._parser.unparsed:
                self._deadline = self._time() + self._limits.header_timeout
                # Not at once: answers given on the spot would pile up one call inside the other.
                self._loop.call_soon(self._advance)
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
        self._deadline = now + LINGER_PAUSE
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
        now = self._time()
        if self._lingering_until is None and self._response.is_overdue(now):
            logger.info("cut a response to %s, which reads too slowly", self.context)
            # The client has a status already; this one is for the log, as for a request that arrives too slowly.
            self.refused_with = HTTPStatus.REQUEST_TIMEOUT.value
            self.stream.close()
            return
        if self.deadline > now:
            return
        if self.idle:
            self.close_idle()
        elif self._parser.request is None or self._response.head_written or self._lingering_until is not None:
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
        self._deadline = math.inf
        self._detached = True
        stream.give_back(self._parser.take_unparsed())
        self._release()
        self._server.on_close(self)
        return stream

    def _on_stream_closed(self) -> None:
        self._deadline = math.inf
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
        self._response.release()
