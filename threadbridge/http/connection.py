"""A client's connection for the time of one request, on which the response is written."""

from __future__ import annotations

import logging
import math
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence
from typing import Protocol

from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.limits import Limits, Memory
from threadbridge.http.parser import Request
from threadbridge.http.response_head import ResponseHead, head_from_tornado
from threadbridge.http.socket_stream import SocketStream
from threadbridge.http.stream import PushStream
from threadbridge.http.transfer import Receiving, Sending

_short = RepeatedLog(logging.getLogger("threadbridge"))


class ServerConnection(Protocol):
    """The client's connection, which carries this request and others: what `HTTP1Connection` uses of it."""

    @property
    def draining(self) -> bool: ...

    def after_response(self, written: Future[None] | None = None) -> None: ...

    def response_finished(self) -> None: ...

    def close(self) -> None: ...

    def detach(self) -> IOStream: ...

    def switch_protocols(self, protocol: OtherProtocol) -> None: ...


class OtherProtocol(Protocol):
    """What takes over a client's connection after the status 101. Loop side."""

    def receive(self, data: bytes) -> None:
        """Take what the client has sent."""

    def receive_end(self) -> bool:
        """Return whether to go on although the client sends no more; otherwise, it counts as gone."""

    def drain(self) -> None:
        """Come to an end soon: the server is draining."""


class HTTP1Connection:
    """The connection of one request: ``request.connection`` in handlers. ``unread`` counts the response's bytes.

    It has the methods of Tornado's `HTTP1Connection` that a delegate may use, but is no subclass: without a base,
    attributes of a compiled class are faster.
    """

    def __init__(
        self,
        owner: ServerConnection,
        request: Request,
        stream: SocketStream | PushStream,
        context: object,
        loop: AbstractEventLoop,
        limits: Limits,
        unread: Memory,
    ) -> None:
        self.stream = stream
        self.context = context
        self.receiving = Receiving(limits)
        # The status that answered a request whose body was refused; its delegate learns only that the request ended.
        self.refused_with = 0
        # Set by the delegate: bytes of the body that it keeps in memory, and has counted in the server's account.
        self.body_held = 0
        # Set by the delegate: whether to answer a client that sends no more and may have left.
        self.answers_after_end = False
        self.close_callback: Callable[[], None] | None = None
        self.head_written = False
        self.finished = False
        # Whether the connection closes after the response.
        self.closes = not request.keep_alive
        # The time by which the client must take something; infinite while nothing waits.
        self.deadline = math.inf
        self._owner = owner
        self._request = request
        self._loop = loop
        self._limits = limits
        self._unread = unread
        self._status = 0
        self._chunked = False
        # Bytes of the response's body that are still to come, if its length is known.
        self._remaining: int | None = None
        # Of the last write.
        self._written: Future[None] | None = None
        # Set once the client has kept the response waiting.
        self._sending: Sending | None = None

    def set_max_body_size(self, max_body_size: int) -> None:
        """Lower the limit for the body, beyond which it is answered 413; raises ``ValueError`` above the server's."""
        if max_body_size > self._limits.max_body_size:
            raise ValueError(
                f"the server accepts bodies of at most {self._limits.max_body_size} bytes; to allow more, give it "
                f"limits=Limits(max_body_size={max_body_size})"
            )
        self.receiving.max_size = max_body_size

    def set_body_timeout(self, body_timeout: float) -> None:
        """Allow this many seconds from now for the rest of the request's body, in addition to the limits."""
        self.receiving.until = self._loop.time() + body_timeout

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Set a function to call when the client leaves before the response is finished."""
        self.close_callback = callback

    def send_head(self, head: ResponseHead, chunk: bytes) -> Future[None] | None:
        """Write a response's head and a first piece of its body; returns and raises what `send` does."""
        request = self._request.start_line
        assert request is not None
        if self._owner.draining or not self._request.complete:
            self.closes = True
        is_http_1_1 = request.version == "HTTP/1.1"
        status, lines, length, close = head.status, head.lines, head.length, head.close
        self._status = status
        if request.method == "HEAD" or status in (204, 304) or status < 200:
            self._remaining = 0
        elif length is not None:
            self._remaining = length
        elif is_http_1_1:
            self._chunked = True
        else:
            # Only the end of the connection marks the end of the body (RFC 9112, section 6.3).
            close = True
        if close:
            self.closes = True
        if status == 101:
            pass
        elif self.closes:
            lines += b"Connection: close\r\n"
        elif not is_http_1_1:
            lines += b"Connection: keep-alive\r\n"
        if self._chunked:
            lines += b"Transfer-Encoding: chunked\r\n"
        self.head_written = True
        return self.send_unframed((b"".join((lines, b"\r\n", *self._framed((chunk,)))),))

    def write_headers(
        self, start_line: ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> Future[None]:
        """See `tornado.httputil.HTTPConnection`. Raises ``ValueError`` as `send_head` and `head_from_tornado` do."""
        return self.send_head(head_from_tornado(start_line, headers), chunk or b"") or self._done()

    def send(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write pieces of the body; returns what `send_unframed` does; ``ValueError`` beyond the ``Content-Length``."""
        return self.send_unframed(self._framed(pieces))

    @property
    def sends_files(self) -> bool:
        """Whether `send_file` works: without TLS."""
        return isinstance(self.stream, SocketStream)

    def send_file(self, descriptor: int, offset: int, size: int) -> tuple[int, Future[None] | None]:
        """Write a part of a file as the next bytes of a body of known length, if nothing waits to be written.

        Returns the number of bytes that have left at once, and None if these are all; otherwise a future that is done
        when more can be written.
        """
        assert self._remaining is not None and size <= self._remaining and isinstance(self.stream, SocketStream)
        try:
            sent, written = self.stream.send_file(descriptor, offset, size)
        except StreamClosedError as error:
            return 0, self._failed(error)
        self._remaining -= sent
        if written is not None:
            self._wait_for(written, 0)
        self._written = written
        return sent, written

    def write(self, chunk: bytes) -> Future[None]:
        """See `tornado.httputil.HTTPConnection`; the future is done when the piece has left."""
        return self.send((chunk,)) or self._done()

    def _done(self) -> Future[None]:
        done: Future[None] = Future(loop=self._loop)
        done.set_result(None)
        return done

    def finish(self) -> None:
        """End the response; the client's connection goes on to the next request, or closes."""
        if self.stream.closed():
            return
        if self._remaining:
            message = "a response to %s is %d bytes shorter than its Content-Length"
            _short.log(logging.ERROR, message, self.context, self._remaining)
            self.close()
            return
        if self._chunked:
            self.send_unframed((b"0\r\n\r\n",))
        self.finished = True
        if self._status == 101:
            # The other protocol takes over: `detach` follows.
            return
        if self._written is not None and not self._written.done():
            self._written.add_done_callback(self._owner.after_response)
        else:
            self._owner.response_finished()

    def close(self) -> None:
        """Close the client's connection at once, without a callback."""
        self._owner.close()

    def detach(self) -> IOStream:
        """Hand over the stream to another protocol, such as WebSocket."""
        return self._owner.detach()

    def switch_protocols(self, protocol: OtherProtocol) -> None:
        """Let another protocol receive what the client sends from now on.

        It sends with `send_unframed`, beginning with the head of the response, 101, and ends with `finish`, which
        closes the connection. Unlike after `detach`, the server counts and limits the connection until then.
        """
        self.head_written = self.closes = True
        self._owner.switch_protocols(protocol)

    def _framed(self, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        size = sum(map(len, pieces))
        if self._remaining is not None:
            self._remaining -= size
            if self._remaining < 0:
                self.close()
                raise ValueError("the body is longer than its Content-Length")
        if self._chunked:
            return (b"%x\r\n" % size, *pieces, b"\r\n") if size else ()
        return pieces

    def send_unframed(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write bytes as they are; returns None if they have left, otherwise a future that is done when they have."""
        try:
            written = self.stream.send(pieces)
        except StreamClosedError as error:
            return self._failed(error)
        if written is not None:
            self._wait_for(written, sum(map(len, pieces)))
        self._written = written
        return written

    def _failed(self, error: StreamClosedError) -> Future[None]:
        written: Future[None] = Future(loop=self._loop)
        written.set_exception(error)
        # Retrieve it, or asyncio would log that it never was.
        written.exception()
        self._written = written
        return written

    def _wait_for(self, written: Future[None], size: int) -> None:
        """Begin the client's time to take what has not left yet, of which ``size`` bytes are in memory."""
        if self._sending is None:
            self._sending = Sending(self.stream, self._unread, self._limits)
        self.deadline = self._sending.wait(self._loop.time(), size)
        written.add_done_callback(self._on_flushed)

    def _on_flushed(self, written: Future[None]) -> None:
        if self.stream.closed() or self.stream.writing():
            return
        if self._sending is not None:
            self._sending.has_left(self._loop.time())
        self.deadline = math.inf

    def is_overdue(self, now: float) -> bool:
        """Check whether the client takes too long to read; moves `deadline` on if it does not."""
        if self._sending is None or not self._sending.waits:
            return False
        self.deadline = self._sending.look(now)
        return self.deadline <= now

    def release(self) -> None:
        """Take the response out of the account of memory."""
        if self._sending is not None:
            self._sending.release()
