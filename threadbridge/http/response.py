"""A response on its way to the client: how it is framed, and how long the client may take to read it."""

from __future__ import annotations

import math
from asyncio import AbstractEventLoop, Future
from collections.abc import Sequence

from tornado.httputil import RequestStartLine
from tornado.iostream import StreamClosedError

from threadbridge.http.limits import Limits
from threadbridge.http.memory import Memory
from threadbridge.http.response_head import ResponseHead
from threadbridge.http.sending import Sending
from threadbridge.http.stream import PushStream


class Response:
    """The response to one request, framed by RFC 9112, section 6. Loop side.

    :param unread: the account of responses that clients have not taken.

    Writing returns None if all bytes have left, or else a future that is done when they have.
    """

    def __init__(self, stream: PushStream, loop: AbstractEventLoop, limits: Limits, unread: Memory) -> None:
        self._stream = stream
        self._loop = loop
        self._limits = limits
        self._unread = unread
        self.status = 0
        self.head_written = False
        self.finished = False
        # Whether the connection closes after the response.
        self.closes = False
        # What the last write returned.
        self.written: Future[None] | None = None
        # The time by which the client must take something; infinite while nothing waits.
        self.deadline = math.inf
        self._chunked = False
        # Bytes of the body that are still to come, if its length is known.
        self._remaining: int | None = None
        # Set once the client has kept the response waiting.
        self._sending: Sending | None = None

    def write_head(self, head: ResponseHead, chunk: bytes, request: RequestStartLine) -> Future[None] | None:
        """Write the head and the first piece of the body; raises ``ValueError`` as `write_body` does."""
        is_http_1_1 = request.version == "HTTP/1.1"
        status, lines, length, close = head
        self.status = status
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
        return self.write(b"".join((lines, b"\r\n", *self._framed(chunk))))

    def write_body(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write pieces of the body; raises ``ValueError`` if it becomes longer than its ``Content-Length``."""
        return self.write(*self._framed(*pieces))

    def end(self) -> int:
        """End the body, and return 0; or return how many bytes it is shorter than its ``Content-Length``."""
        if self._remaining:
            return self._remaining
        if self._chunked:
            self.write(b"0\r\n\r\n")
        self.finished = True
        return 0

    def _framed(self, *pieces: bytes | memoryview) -> Sequence[bytes | memoryview]:
        size = sum(map(len, pieces))
        if self._remaining is not None:
            self._remaining -= size
            if self._remaining < 0:
                raise ValueError("the body is longer than its Content-Length")
        if self._chunked:
            return (b"%x\r\n" % size, *pieces, b"\r\n") if size else ()
        return pieces

    def write(self, *pieces: bytes | memoryview) -> Future[None] | None:
        """Write bytes that need no framing."""
        try:
            written = self._stream.send(*pieces)
        except StreamClosedError as error:
            written = Future(loop=self._loop)
            written.set_exception(error)
            # Otherwise asyncio would log that nobody has looked at it.
            written.exception()
            self.written = written
            return written
        if written is not None:
            if self._sending is None:
                limits = self._limits
                self._sending = Sending(
                    self._stream, self._unread, limits.send_timeout, limits.min_rate, limits.transfer_timeout
                )
            self.deadline = self._sending.wait(self._loop.time(), sum(map(len, pieces)))
            written.add_done_callback(self._on_flushed)
        self.written = written
        return written

    def _on_flushed(self, written: Future[None]) -> None:
        if self._stream.closed() or self._stream.writing():
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
