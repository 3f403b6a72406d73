"""The socket that an application takes over to speak WebSocket, and its way to the client's connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from asyncio import Future
from collections.abc import Callable

from tornado.httputil import HTTPHeaders

from threadbridge.http.connection import HTTP1Connection
from threadbridge.http.limits import READ_SIZE

# Status codes of Close frames (RFC 6455, section 7.4.1).
NORMAL, GOING_AWAY, INTERNAL_ERROR = 1000, 1001, 1011
_CLOSE = 8
# Seconds for the end of the WebSocket, after the application's call or after it has closed its socket.
CLOSING_TIME = 5.0


def asks_for_websocket(method: str, version: str, headers: HTTPHeaders) -> bool:
    """Return whether a request opens a WebSocket (RFC 6455, section 4.1). Loop side."""
    return (
        method == "GET"
        and version == "HTTP/1.1"
        and headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("Connection", "").lower()
        and headers.get("Content-Length", "0") == "0"
        and "Transfer-Encoding" not in headers
    )


class SocketRelay:
    """Carries bytes between the client's connection and a socket that the application may take over.

    The application's socket is one end of a pair. The server keeps the client's own, with its TLS, its limits and its
    place among the connections. The relay begins when the application has written something to its socket; if it never
    does, its response is sent as usual.

    The loop owns everything except `_has_begun` and the inner end of the pair, which a lock guards.

    :param post: runs a function on the loop.
    :param on_begin: called when the relay begins; returns False if the request has ended. Loop side.
    :param on_end: called once, when all that the application wrote has been sent. Loop side.
    """

    def __init__(
        self,
        connection: HTTP1Connection,
        post: Callable[..., None],
        on_begin: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._post = post
        self._on_begin = on_begin
        self._on_end = on_end
        self._lock = threading.Lock()
        self._has_begun = False
        self._inner: socket.socket | None = None
        self._outer: socket.socket | None = None
        self._relays = False
        # Whether the client has not taken yet what was sent last.
        self._is_flushing = False
        self._is_closed = False
        # Whether the application has closed its socket.
        self._has_ended = False
        # Ends the relay after `CLOSING_TIME`.
        self._closing: asyncio.TimerHandle | None = None
        # What the application has not read yet.
        self._unread = b""
        self._frames = ClientFrames()
        # The status of a Close frame to tell the application, or 0, and whether it has been told.
        self._status = 0
        self._is_told = False
        # Bytes from the application.
        self.sent = 0

    def open(self) -> socket.socket:
        """Return the application's socket; call `end` after the application's call. Worker side.

        Raises ``OSError`` if no descriptors are left.
        """
        inner, self._outer = socket.socketpair()
        inner.setblocking(False)
        self._inner = inner
        self._post(self._watch)
        return self._outer

    def has_begun(self) -> bool:
        """Return whether the application has taken over its socket. Either side."""
        with self._lock:
            if not self._has_begun and self._inner is not None:
                # BlockingIOError: it has written nothing. Others: it has closed the socket.
                with contextlib.suppress(OSError):
                    self._has_begun = bool(self._inner.recv(1, socket.MSG_PEEK))
            return self._has_begun

    def end(self, *, is_failed: bool) -> bool:
        """Note that the application's call has ended. Returns whether it had taken over its socket. Worker side."""
        outer, self._outer = self._outer, None
        if self.has_begun():
            # A thread of its own may still use the socket.
            self._post(self._end, INTERNAL_ERROR if is_failed else NORMAL)
            return True
        if outer is not None:
            outer.close()
        return False

    def _watch(self) -> None:
        if self._is_closed:
            # The client has left before the application got its socket.
            self.close()
        elif self._inner is not None:
            asyncio.get_running_loop().add_reader(self._inner, self._on_readable)

    def _end(self, status: int) -> None:
        if self._inner is not None and (self._relays or self._begin()):
            self._limit_closing()
            self._tell(status)

    def _limit_closing(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(CLOSING_TIME, self._give_up)

    def _give_up(self) -> None:
        if self._is_flushing:
            # A client that reads slowly has limits of its own.
            self._closing = None
            self._limit_closing()
        else:
            self._on_end()

    def close(self) -> None:
        """Close the server's end: the application reads the end of its socket. Loop side."""
        self._is_closed = True
        if self._closing is not None:
            self._closing.cancel()
        inner = self._inner
        if inner is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(inner)
            loop.remove_writer(inner)
            with self._lock:
                self._inner = None
                inner.close()

    # From the application to the client. Loop side.

    def _on_readable(self) -> None:
        inner = self._inner
        if inner is None or self._is_flushing or not (self._relays or self._begin()):
            return
        try:
            data = inner.recv(READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            # The application has closed its socket before it has read everything.
            data = b""
        if not data:
            self._has_ended = True
            asyncio.get_running_loop().remove_reader(inner)
            if self._frames.has_closed:
                self._on_end()
            else:
                # The client still has to answer to the Close frame that it has got.
                self._limit_closing()
            return
        self.sent += len(data)
        flushed = self._connection.send_unframed((data,))
        if flushed is not None:
            self._is_flushing = True
            asyncio.get_running_loop().remove_reader(inner)
            flushed.add_done_callback(self._on_flushed)

    def _on_flushed(self, flushed: Future[None]) -> None:
        self._is_flushing = False
        # After an exception, the client has left, and the close callback ends the request.
        if self._inner is not None and flushed.exception() is None:
            asyncio.get_running_loop().add_reader(self._inner, self._on_readable)
            self._on_readable()

    def _begin(self) -> bool:
        """Switch protocols if the application has written something."""
        if not self.has_begun():
            # It has closed its socket.
            assert self._inner is not None
            asyncio.get_running_loop().remove_reader(self._inner)
            return False
        if not self._on_begin():
            self.close()
            return False
        self._relays = True
        self._connection.switch_protocols(self)
        return True

    # From the client to the application. Loop side.

    def receive(self, data: bytes) -> None:
        """See `OtherProtocol`."""
        end = self._frames.feed(data)
        if self._status and end is not None and not self._is_told:
            self._is_told = True
            self._pass_on(data[:end] + close_frame(self._status))
        elif not self._is_told:
            self._pass_on(data)
        if self._has_ended and self._frames.has_closed and not self._is_closed:
            self._on_end()

    def receive_end(self) -> bool:
        """See `OtherProtocol`: after the client's Close frame, the application's answer may be under way."""
        return self._frames.has_closed

    def drain(self) -> None:
        """Tell the application what it hears when the client leaves the page."""
        self._tell(GOING_AWAY)

    def _tell(self, status: int) -> None:
        """Send the application a Close frame as from the client, between two of its frames; it answers the client."""
        if not self._status and not self._frames.has_closed:
            self._status = status
            if self._frames.is_between:
                self._is_told = True
                self._pass_on(close_frame(status))

    def _pass_on(self, data: bytes) -> None:
        inner = self._inner
        if inner is None:
            return
        if self._unread:
            self._unread += data
            return
        try:
            sent = inner.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The application has closed its socket; `_on_readable` sees that, too.
            return
        if sent < len(data):
            self._unread = data[sent:]
            self._connection.stream.pause_reading()
            asyncio.get_running_loop().add_writer(inner, self._on_writable)

    def _on_writable(self) -> None:
        assert self._inner is not None
        asyncio.get_running_loop().remove_writer(self._inner)
        data, self._unread = self._unread, b""
        self._pass_on(data)
        if not self._unread:
            self._connection.stream.resume_reading()


class ClientFrames:
    """Finds where a WebSocket client's frames end (RFC 6455, section 5.2)."""

    def __init__(self) -> None:
        # Whether a frame was the client's Close, its last.
        self.has_closed = False
        self._head = b""
        # Bytes of the payload that are still to come.
        self._remaining = 0

    @property
    def is_between(self) -> bool:
        """Whether the last frame is complete."""
        return not (self._head or self._remaining)

    def feed(self, data: bytes) -> int | None:
        """Take what comes next; return the position behind the last frame that ends in it, or None if none does."""
        end, position = None, 0
        while position < len(data):
            if self._remaining:
                step = min(self._remaining, len(data) - position)
                self._remaining -= step
                position += step
            else:
                step = _head_size(self._head) - len(self._head)
                self._head += data[position : position + step]
                position += step
                if len(self._head) < _head_size(self._head):
                    # There may be more of it in the data: its first two bytes tell its size.
                    continue
                self._remaining = _payload_size(self._head)
                self.has_closed = self.has_closed or self._head[0] & 15 == _CLOSE
                self._head = b""
            if not self._remaining:
                end = position
        return end


def close_frame(status: int) -> bytes:
    """Return a client's Close frame, which is masked, here with zeros."""
    return bytes([0x80 | _CLOSE, 0x80 | 2, 0, 0, 0, 0]) + status.to_bytes(2, "big")


def _head_size(head: bytes) -> int:
    """Return the size of a frame's head, as far as its beginning tells it."""
    if len(head) < 2:
        return 2
    return 2 + {126: 2, 127: 8}.get(head[1] & 127, 0) + (4 if head[1] & 128 else 0)


def _payload_size(head: bytes) -> int:
    size = head[1] & 127
    return size if size < 126 else int.from_bytes(head[2 : 4 if size == 126 else 10], "big")
