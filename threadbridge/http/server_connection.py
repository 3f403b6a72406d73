"""A client's HTTP/1.1 connection: reads requests, and passes them to their delegates one after the other."""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import Future
from collections.abc import Callable
from typing import Any, Protocol, cast

from tornado.httputil import HTTPConnection, HTTPInputError, HTTPMessageDelegate
from tornado.iostream import IOStream

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.connection import HTTP1Connection, OtherProtocol
from threadbridge.http.limits import DRAIN_LINGER, LINGER_PAUSE, LINGER_TIME, WORTH_REFUSING, Limits, Memory
from threadbridge.http.parser import HeadReader, Request, RequestParser
from threadbridge.http.request_rules import BadRequest, too_large
from threadbridge.http.socket_stream import SocketStream
from threadbridge.http.stream import PushStream

logger = logging.getLogger("threadbridge")
_failed = RepeatedLog(logger)


class AcceptingServer(Protocol):
    """The server that accepted a connection: what `HTTP1ServerConnection` uses of `ConnectionServer`."""

    limits: Limits
    draining: bool
    memory: Memory
    unread: Memory
    heads: HeadReader

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate: ...

    def on_close(self, server_conn: object) -> None: ...

    def on_client_left(self) -> None: ...

    def refused(self, context: Any, request_line: str, status: int, sent: int) -> None: ...

    def make_room(self) -> None: ...

    def run_in_steps(self, step: Callable[[], None]) -> None: ...


class HTTP1ServerConnection:
    """One client's connection, which carries one request after the other, each an `HTTP1Connection`."""

    def __init__(self, stream: SocketStream | PushStream, context: object, server: AcceptingServer) -> None:
        self.stream = stream
        self.context = context
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._parser = RequestParser(server.heads, self._limits.max_header_size, self._limits.max_body_size)
        # The connection and the delegate of the current request; None until its head is complete.
        self._current: HTTP1Connection | None = None
        self._delegate: HTTPMessageDelegate | None = None
        # Whether the delegate has the whole request.
        self._delivered = False
        # Whether the delegate has returned an awaitable that is not done, and since when.
        self._paused = False
        self._paused_at = 0.0
        self._lingering_until: float | None = None
        self._detached = False
        # Set while the client speaks another protocol.
        self._protocol: OtherProtocol | None = None
        # Bytes that the server's account counts for the parser.
        self._parser_held = 0
        # The time by which the client must send something; infinite while nothing is expected.
        self._deadline = self._time() + self._limits.header_timeout
        stream.set_close_callback(self._on_stream_closed)
        stream.receive(self._on_data, self._on_end)

    @property
    def deadline(self) -> float:
        """The time, monotonic seconds, at which the server should call `expire` unless something moves before."""
        current = self._current
        return self._deadline if current is None else min(self._deadline, current.deadline)

    @property
    def draining(self) -> bool:
        """Whether the connection closes after the response."""
        return self._server.draining

    def _on_data(self, data: bytes) -> None:
        if self._lingering_until is not None:
            self._deadline = min(self._time() + LINGER_PAUSE, self._lingering_until)
            return
        if self.idle:
            self._deadline = self._time() + self._limits.header_timeout
        self._parser.feed(data)
        if self._delivered or not self._may_deliver():
            # One read may wait here behind the request that is being answered; the rest waits in the kernel.
            self.stream.pause_reading()
            self._account()
        else:
            self._advance()

    def _on_end(self) -> bool:
        """Return whether to answer although the client sends no more, or has left (RFC 9112, section 9.6)."""
        if self._paused:
            # This is called again when the delegate has taken the data; only then is it known.
            return True
        request, current = self._parser.request, self._current
        if request is None or current is None or not request.complete:
            return False
        if self._detached or self._lingering_until is not None:
            return False
        current.closes = True
        return current.finished or current.answers_after_end

    def _advance(self) -> None:
        """Deliver what has arrived of the current request, and read on if it is not complete."""
        if self._delivered or not self._may_deliver():
            return
        parser = self._parser
        refusal, has_more = None, False
        try:
            has_more = parser.parse()
        except BadRequest as error:
            refusal = error
        request = parser.request
        if refusal is not None:
            if self._delegate is None and request is not None and request.start_line is not None:
                # Its head is valid: the record of the request should have its client and its id.
                self._begin(request)
            if not (self.stream.closed() or (self._current is not None and self._current.finished)):
                self.refuse(refusal)
            return
        if request is None:
            self._account()
            self.stream.resume_reading()
            return
        if self._delegate is None and request.start_line is not None:
            self._begin(request)
        delegate, current = self._delegate, self._current
        if request.body and delegate is not None and current is not None and self._may_deliver():
            body, request.body = request.body, b""
            if current.receiving.accepts(len(body)):
                self._deliver(delegate.data_received, body)
            else:
                self.refuse(too_large(current.receiving.max_size))
        self._account()
        if request.start_line is not None and (self._delegate is None or not self._may_deliver()):
            # If the delegate failed, the client has been answered, or the connection closed.
            return
        if request.complete:
            self._delivered = True
            self._deadline = math.inf
            if not parser.unparsed:
                # Nothing is expected, but it must be noticed when the client leaves.
                self.stream.resume_reading()
            self._deliver(cast(HTTPMessageDelegate, self._delegate).finish)
        elif has_more:
            # The chunks of a client that sends many small ones are decoded between the requests of other clients.
            self.stream.pause_reading()
            self._server.run_in_steps(self._advance)
        else:
            if self._current is not None:
                self._deadline = self._current.receiving.deadline(self._time())
            self.stream.resume_reading()

    def _account(self) -> None:
        """Update the server's account of memory."""
        held = self._parser.held
        if held != self._parser_held:
            self._server.memory.add(held - self._parser_held)
            self._parser_held = held
        if self.held >= WORTH_REFUSING and self._server.memory.is_full:
            self._server.make_room()

    @property
    def held(self) -> int:
        """Bytes of memory that the request takes so far."""
        return self._parser_held if self._current is None else self._parser_held + self._current.body_held

    @property
    def is_answering(self) -> bool:
        """Whether a whole request has arrived whose response is not complete."""
        return self._delivered

    @property
    def is_receiving(self) -> bool:
        """Whether a request is arriving, so that it can still be refused."""
        current = self._current
        if self._delivered or self._lingering_until is not None:
            return False
        return current is None or not (current.head_written or current.finished)

    def _begin(self, request: Request) -> None:
        assert request.start_line is not None
        self._deadline = math.inf
        current = self._current = self._connection_for(request)
        self._delegate = self._server.start_request(self, cast(HTTPConnection, current))
        self._deliver(self._delegate.headers_received, request.start_line, request.headers)
        if not self._may_deliver():
            return
        limit = current.receiving.max_size
        if limit < self._limits.max_body_size and int(request.headers.get("Content-Length", 0)) > limit:
            self.refuse(too_large(limit))
        elif request.expects_continue and not request.complete and not request.body:
            current.send_unframed((b"HTTP/1.1 100 Continue\r\n\r\n",))

    def _connection_for(self, request: Request) -> HTTP1Connection:
        return HTTP1Connection(self, request, self.stream, self.context, self._loop, self._limits, self._server.unread)

    def _may_deliver(self) -> bool:
        """False if the delegate has answered early, detached the stream or returned an awaitable."""
        finished = self._current is not None and self._current.finished
        return not (finished or self._paused or self._detached or self.stream.closed())

    def _deliver(self, method: Callable[..., Any], *arguments: object) -> None:
        """Call a method of the delegate; if it returns an awaitable, read nothing more until that is done."""
        try:
            waiting = method(*arguments)
        except Exception as error:  # noqa: BLE001 - it is answered or logged
            self._delegate_failed(error)
            return
        if waiting is not None:
            self._paused = True
            self._paused_at = self._time()
            self._deadline = math.inf
            asyncio.ensure_future(waiting).add_done_callback(self._on_taken)

    def _on_taken(self, taken: Future[None]) -> None:
        self._paused = False
        if self._current is not None:
            self._current.receiving.resume(self._time() - self._paused_at)
        error = taken.exception()
        if error is not None:
            self._delegate_failed(error)
        self._advance()

    def _delegate_failed(self, error: BaseException) -> None:
        """Answer 400 to an `HTTPInputError`; otherwise log the error and close the connection."""
        current = self._current
        is_refusal = isinstance(error, HTTPInputError) and not self.stream.closed()
        if is_refusal and current is not None and not current.head_written:
            # Without a request, it is not told that the connection ends.
            self._delegate = None
            current.set_close_callback(None)
            # The message may quote the request.
            self.refuse(BadRequest(400, ascii(str(error))[1:-1]))
        else:
            _failed.log(logging.ERROR, "a request from %s failed in the server", self.context, exc_info=error)
            delegate = self._delegate
            self.close()
            if delegate is not None:
                # Its request has ended too.
                self._deliver(delegate.on_connection_close)

    def refuse(self, error: BadRequest) -> None:
        """Answer a request that has not arrived completely or is invalid; the connection then closes."""
        logger.info("refused a request from %s: %d, %s", self.context, error.status, error.reason)
        current = self._current
        request = self._parser.request
        if current is not None and self._delegate is not None:
            current.refused_with = error.status
            self._deliver(self._delegate.on_connection_close)
            self._delegate = None
        else:
            start_line = None if request is None else request.start_line
            request_line = self._parser.request_line if start_line is None else " ".join(start_line)
            self._server.refused(self.context, request_line, error.status, len(error.body))
        self._parser.drop()
        self._account()
        if current is None:
            current = self._current = self._connection_for(request or Request())
        current.head_written = current.finished = True
        # From now on, only the time that the client takes to read the refusal counts.
        self._deadline = math.inf
        written = current.send_unframed((error.response,))
        if written is None:
            self._linger()
        else:
            written.add_done_callback(self._linger)

    def response_finished(self) -> None:
        """Go on after a response that is complete and has left."""
        if self._delivered:
            self.after_response()
        else:
            # A delegate that answers before the request ends does so inside a delivery, which must return first.
            self._loop.call_soon(self.after_response)

    def after_response(self, written: Future[None] | None = None) -> None:
        """Go on to the next request, or close."""
        if self._detached or self.stream.closed():
            return
        current, request = self._current, self._parser.request
        assert current is not None and request is not None
        if self._protocol is not None:
            self._protocol = None
            self.stream.receive(self._on_data, self._on_end)
        # From here on, a client that leaves has had its response.
        current.set_close_callback(None)
        has_more = self.stream.paused or self._parser.unparsed > 0
        if not request.complete or (current.closes and (has_more or self.stream.has_unread())):
            # The rest of the body, or what follows the last request, is not wanted.
            self._linger()
        elif current.closes:
            # Without the callback, which would only do the same, in the loop's next iteration.
            self.stream.set_close_callback(None)
            self.stream.close()
            self._leave_server()
            # They refer to each other: so both are freed at once.
            self._current = self._delegate = None
        else:
            self._parser.next()
            current.release()
            self._current = self._delegate = None
            self._delivered = False
            if self._parser.unparsed:
                self._deadline = self._time() + self._limits.header_timeout
                # Not at once: the calls for pipelined requests that are answered at once would nest.
                self._loop.call_soon(self._advance)
            else:
                # Responses that begin while the server drains close their connections; this one began before.
                self._deadline = self._time() + (DRAIN_LINGER if self.draining else self._limits.idle_timeout)
                self.stream.resume_reading()
                if isinstance(self.stream, SocketStream):
                    self.stream.watch()

    def _linger(self, written: Future[None] | None = None) -> None:
        if self.stream.closed():
            return
        now = self._time()
        self._lingering_until = now + LINGER_TIME
        self._deadline = now + LINGER_PAUSE
        if self.stream.end_sending():
            self.stream.resume_reading()
        else:
            # The client has gone already, which is what lingering waits for.
            self.stream.close()

    @property
    def idle(self) -> bool:
        """Whether no request has begun to arrive since the last response."""
        return self._parser.request is None and not self._parser.unparsed and self._lingering_until is None

    @property
    def is_expendable(self) -> bool:
        """Whether it can be closed without losing a request or a response."""
        return self.idle or self._lingering_until is not None

    def expire(self) -> None:
        """Act on `deadline`: answer 408 to a request that has begun to arrive, or close without a response."""
        now, current = self._time(), self._current
        if self.stream.closed() or self.deadline > now:
            # It has closed, or bytes have moved, since the server looked.
            return
        if current is not None and self._lingering_until is None and current.is_overdue(now):
            logger.info("cut a response to %s, which reads too slowly", self.context)
            # For the log only: the client has another status already.
            current.refused_with = 408
            self.stream.close()
            return
        if self.deadline > now:
            return
        if self.idle:
            self.close_idle()
        elif self.is_receiving and self._parser.request is not None:
            self.refuse(BadRequest(408, "the request did not arrive in time"))
        else:
            self.stream.close()

    def close_idle(self) -> None:
        """Close the connection if it is idle, unless a request has arrived that has not been read yet."""
        if self.idle and not self.stream.has_unread():
            self.stream.close()

    def drain(self) -> None:
        """Close the connection if it is idle; tell another protocol to close."""
        if self._protocol is not None:
            self._protocol.drain()
        else:
            self.close_idle()

    def close(self) -> None:
        """Close the connection at once, without a callback."""
        if self._current is not None:
            self._current.set_close_callback(None)
        self._delegate = None
        self.stream.close()

    def detach(self) -> IOStream:
        """Hand over the stream to another protocol, such as WebSocket; the connection does nothing more."""
        stream = self.stream
        if isinstance(stream, SocketStream):
            stream = self.stream = stream.detach()
            if self._current is not None:
                self._current.stream = stream
        stream.set_close_callback(None)
        stream.receive(None)
        self._detached = True
        stream.give_back(self._parser.take_unparsed())
        self._leave_server()
        return stream

    def switch_protocols(self, protocol: OtherProtocol) -> None:
        """See `HTTP1Connection.switch_protocols`."""
        self._protocol = protocol
        early = self._parser.take_unparsed()
        self._account()
        self.stream.receive(protocol.receive, protocol.receive_end)
        if isinstance(self.stream, SocketStream):
            self.stream.watch()
        if early:
            protocol.receive(early)
        if self.draining:
            protocol.drain()

    def _on_stream_closed(self) -> None:
        self._server.on_client_left()
        self._leave_server()
        callback = None if self._current is None else self._current.close_callback
        delegate, self._delegate = self._delegate, None
        if callback is not None:
            callback()
        elif delegate is not None and not self._delivered:
            delegate.on_connection_close()

    def _leave_server(self) -> None:
        self._deadline = math.inf
        self._server.memory.add(-self._parser_held)
        self._parser_held = 0
        if self._current is not None:
            self._current.release()
        self._server.on_close(self)
