"""A client's connection without TLS: pushes received bytes to a function, and tries to write at once. Loop side."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
import termios
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from tornado.iostream import StreamClosedError

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.limits import READ_SIZE

if TYPE_CHECKING:
    from threadbridge.http.stream import PushStream

logger = logging.getLogger("threadbridge")
_read_log, _error_log = RepeatedLog(logger), RepeatedLog(logger)

# What a client that has left causes: no news.
_LEFT: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, TimeoutError)
_ZERO: Final = bytes(4)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_SOL_SOCKET: Final = int(socket.SOL_SOCKET)
_SO_ERROR: Final = int(socket.SO_ERROR)


class SocketStream:
    """What `PushStream` is over TLS, without `IOStream`, whose attributes and registration cost more than a request.

    It registers itself with asyncio's loop, and makes what it needs only for slow clients when there is one. `detach`
    turns it into an `IOStream`. The socket's own mode does not matter: no call here waits.
    """

    def __init__(self, sock: socket.SocketType, loop: AbstractEventLoop) -> None:
        self.socket = sock
        # Why it was closed, unless that was on purpose.
        self.error: BaseException | None = None
        # Whether nothing is read: see `pause_reading`.
        self.paused = False
        self._loop = loop
        self._descriptor = sock.fileno()
        self._closed = False
        # Whether the loop reports when something has arrived.
        self._is_watched = False
        self._on_data: Callable[[bytes], None] | None = None
        self._on_end: Callable[[], bool] | None = None
        self._close_callback: Callable[[], None] | None = None
        # Pieces that the kernel has not taken yet; None while there are none.
        self._waiting: deque[bytes | memoryview] | None = None
        # For each `send` whose bytes wait: its future, and the count of bytes sent at which that is done.
        self._futures: deque[tuple[int, Future[None]]] | None = None
        self._given = 0
        self._sent = 0

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call the function in the loop's next iteration after the stream was closed, by either end."""
        self._close_callback = callback

    def receive(self, on_data: Callable[[bytes], None] | None, on_end: Callable[[], bool] | None = None) -> None:
        """Call ``on_data`` with bytes that arrive, once `read_now` or `watch` was called.

        When the client has sent its last byte, the stream closes unless ``on_end()`` returns true.
        """
        self._on_data = on_data
        self._on_end = on_end
        self.paused = False

    def read_now(self) -> None:
        """Read what has arrived already, as a client's first request mostly has when its connection is accepted."""
        self._on_readable()

    def watch(self) -> None:
        """Have the loop report what arrives from now on: with uvloop, this takes six system calls."""
        if not self._is_watched and not self._closed:
            self._is_watched = True
            self._loop.add_reader(self._descriptor, self._on_readable)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._descriptor)

    def pause_reading(self) -> None:
        """Leave bytes that arrive in the kernel. That the client has left is noticed only after `resume_reading`."""
        # The kernel is told only when something has arrived.
        self.paused = True

    def resume_reading(self) -> None:
        """Read again after `pause_reading`; otherwise do nothing."""
        if self.paused:
            self.paused = False
            self.watch()

    def closed(self) -> bool:
        """Whether the stream has been closed, by either end."""
        return self._closed

    def writing(self) -> bool:
        """Whether bytes wait for the client to read."""
        return self._waiting is not None

    def has_unread(self) -> bool:
        """Whether bytes have arrived that are still in the kernel."""
        if self._closed:
            return False
        return fcntl.ioctl(self._descriptor, termios.FIONREAD, _ZERO) != _ZERO

    def end_sending(self) -> bool:
        """Tell the client that nothing follows what has been sent; False if it has left."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def acknowledged(self) -> int:
        """Return a count that grows with the bytes that the client's system acknowledges, while `writing`."""
        if self._closed:
            return self._sent
        waiting = fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, _ZERO)
        return self._sent - int.from_bytes(waiting, sys.byteorder)

    def send(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write; returns None if all bytes have left, or else a future that is done when they have.

        The future fails with `StreamClosedError` if the stream closes before. Raises that only if none have left.
        """
        if self._closed:
            raise StreamClosedError(real_error=self.error)
        if self._waiting is not None:
            return self._keep(pieces, 0)
        try:
            if len(pieces) == 1:
                sent = self.socket.send(pieces[0], _DONTWAIT)
                if sent == len(pieces[0]):
                    self._sent += sent
                    return None
            else:
                sent = self.socket.sendmsg(pieces, (), _DONTWAIT) if pieces else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(error)
            raise StreamClosedError(real_error=error) from error
        self._sent += sent
        if sent == sum(map(len, pieces)):
            return None
        self._begin_waiting()
        return self._keep(pieces, sent)

    def send_file(self, descriptor: int, offset: int, size: int) -> tuple[int, Future[None] | None]:
        """Write a part of a file as far as the client's system takes it at once. Nothing may wait to be written.

        Returns the number of bytes that have left and, if these are not all, a future that is done when more can be
        written. Raises `StreamClosedError` as `send` does.
        """
        if self._closed:
            raise StreamClosedError(real_error=self.error)
        if self.socket.gettimeout() != 0:
            # Other than `send`, ``sendfile`` cannot be told for each call not to wait.
            self.socket.setblocking(False)
        try:
            sent = os.sendfile(self._descriptor, descriptor, offset, size)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(error)
            raise StreamClosedError(real_error=error) from error
        self._sent += sent
        if sent == size:
            return sent, None
        self._begin_waiting()
        return sent, self._keep((), 0)

    def _begin_waiting(self) -> None:
        self._given = self._sent
        self._waiting = deque()
        self._futures = deque()
        self._loop.add_writer(self._descriptor, self._on_writable)

    def _keep(self, pieces: Sequence[bytes | memoryview], sent: int) -> Future[None]:
        """Keep pieces, without their first ``sent`` bytes, for when the client has read more."""
        assert self._waiting is not None and self._futures is not None
        for piece in pieces:
            size = len(piece)
            if sent >= size:
                sent -= size
                continue
            self._waiting.append(memoryview(piece)[sent:] if sent else piece)
            self._given += size - sent
            sent = 0
        written: Future[None] = Future(loop=self._loop)
        self._futures.append((self._given, written))
        return written

    def _on_writable(self) -> None:
        waiting, futures = self._waiting, self._futures
        assert waiting is not None and futures is not None
        try:
            while waiting:
                piece = waiting[0]
                sent = self.socket.send(piece, _DONTWAIT)
                self._sent += sent
                if sent < len(piece):
                    waiting[0] = memoryview(piece)[sent:]
                    break
                waiting.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(error)
            return
        if not waiting:
            self._loop.remove_writer(self._descriptor)
            self._waiting = self._futures = None
        while futures and futures[0][0] <= self._sent:
            _, written = futures.popleft()
            if not written.done():
                written.set_result(None)

    def _on_readable(self) -> None:
        on_data = self._on_data
        if self.paused or on_data is None:
            self._unwatch()
            return
        try:
            data = self.socket.recv(READ_SIZE, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if not isinstance(error, _LEFT):
                _read_log.log(logging.INFO, "closed a connection because reading from it failed: %s", error)
            self.close(error)
            return
        try:
            if data:
                on_data(data)
                if not self._closed and (number := self.socket.getsockopt(_SOL_SOCKET, _SO_ERROR)):
                    # The client reset the connection after it had sent this. uvloop reports that once, by this call.
                    self.close(OSError(number, os.strerror(number)))
            elif self._on_end is not None and self._on_end():
                # Nothing more will arrive, and the kernel would report that again and again.
                self.paused = True
            else:
                self.close()
        except Exception as error:  # noqa: BLE001 - it is logged here; raised, it would be logged again, without limit
            _error_log.log(logging.ERROR, "closed a connection because the server failed", exc_info=error)
            self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Close the socket at once; bytes that wait are lost."""
        if self._closed:
            return
        self.error = error
        self._unwatch()
        futures, self._futures = self._futures, None
        if self._waiting is not None:
            self._loop.remove_writer(self._descriptor)
            self._waiting = None
        self._closed = True
        self.socket.close()
        # They refer to the connection, which refers to this: without the circle, both are freed at once.
        self._on_data = self._on_end = None
        for _, written in futures or ():
            if not written.done():
                written.set_exception(StreamClosedError(real_error=error))
            # Retrieve it, or asyncio would log that it never was.
            written.exception()
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self._loop.call_soon(callback)

    def detach(self) -> PushStream:
        """Hand the socket, and bytes that wait, over to a stream of Tornado's; this one does nothing more."""
        # Not at the top: few connections need it.
        from threadbridge.http.stream import PushStream

        self._unwatch()
        waiting, futures = self._waiting or (), self._futures or ()
        if self._waiting is not None:
            self._loop.remove_writer(self._descriptor)
        self._closed = True
        self._waiting = self._futures = self._on_data = self._on_end = self._close_callback = None
        stream = PushStream(socket.socket(fileno=self.socket.detach()))
        for piece in waiting:
            stream.write(piece)
        for _, written in futures:
            if not written.done():
                written.set_result(None)
        return stream
