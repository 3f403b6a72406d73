"""An `IOStream` that pushes received data to a callback and tries to write at once: for TLS, and for other hosts."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
import termios
from asyncio import Future
from collections.abc import Callable, Sequence
from ssl import SSLEOFError, SSLError, SSLWantReadError, SSLWantWriteError, SSLZeroReturnError
from typing import Any

import tornado
from tornado.ioloop import IOLoop
from tornado.iostream import BaseIOStream, IOStream, SSLIOStream, StreamClosedError

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.limits import READ_SIZE

logger = logging.getLogger("threadbridge")
_handshake_log, _read_log, _error_log = RepeatedLog(logger), RepeatedLog(logger), RepeatedLog(logger)

# The private methods and attributes of Tornado's streams that this module uses.
_METHODS = ("_add_io_state", "_check_closed", "_do_ssl_handshake", "_handle_events", "_handle_read", "_is_connreset")
_ATTRIBUTES = ("_closed", "_read_buffer", "_read_buffer_size", "_state", "_total_write_done_index", "_write_buffer")
_TLS_ATTRIBUTES = ("_handshake_reading", "_handshake_writing")


def check_tornado() -> None:
    """Raise ``ValueError`` for a version of Tornado whose streams lack these methods or attributes."""
    # A stream cannot be made before the loop runs, but the code of its constructor names the attributes.
    made = BaseIOStream.__init__.__code__.co_names
    missing = [name for name in _METHODS if not hasattr(SSLIOStream, name)]
    missing += [name for name in _ATTRIBUTES if name not in made]
    missing += [name for name in _TLS_ATTRIBUTES if name not in SSLIOStream.__init__.__code__.co_names]
    if missing:
        raise ValueError(
            f"the streams of Tornado {tornado.version} have no {', '.join(missing)}; this version of threadbridge "
            "needs Tornado 6.5 or later, below 7: install that"
        )


class PushStream(IOStream):
    """An `IOStream` that passes received bytes to a function, from `receive` until ``receive(None)``.

    `IOStream` itself makes a `Future` for each read and each write, and tries to read before it waits, which costs more
    than small requests and responses themselves.
    """

    _on_data: Callable[[bytes], None] | None = None
    _on_end: Callable[[], bool] | None = None
    # Whether nothing is read: see `pause_reading`.
    paused = False

    def receive(self, on_data: Callable[[bytes], None] | None, on_end: Callable[[], bool] | None = None) -> None:
        """Call ``on_data`` with bytes that arrive, or, if it is None, keep them for ``read_bytes`` and the like.

        When the client has sent its last byte, the stream closes unless ``on_end()`` returns true.
        """
        self._on_data = on_data
        self._on_end = on_end
        self.paused = False
        self._add_io_state(IOLoop.READ)

    def pause_reading(self) -> None:
        """Leave bytes that arrive in the kernel. That the client has left is noticed only after `resume_reading`."""
        self.paused = True

    def resume_reading(self) -> None:
        """Read again after `pause_reading`; otherwise do nothing."""
        if self.paused:
            self.paused = False
            self._add_io_state(IOLoop.READ)

    @property
    def descriptor(self) -> int | None:
        """The descriptor of its socket, as long as that is open."""
        return None if self.closed() else int(self.socket.fileno())

    def has_unread(self) -> bool:
        """Whether bytes have arrived that are still in the kernel."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            # BlockingIOError: none have. Any other: the connection is gone.
            return False

    def end_sending(self) -> bool:
        """Tell the client that nothing follows what has been sent; False if it has left."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def give_back(self, data: bytes) -> None:
        """Put bytes back that were received, for the methods of `IOStream` to read; it has no public way to do it."""
        if data:
            self._read_buffer[:0] = data
            self._read_buffer_size += len(data)

    def acknowledged(self) -> int:
        """Return a count that grows with the bytes that the client's system acknowledges, while `writing`."""
        try:
            waiting = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        except OSError:
            # The client has left.
            return self._total_write_done_index
        return self._total_write_done_index - int.from_bytes(waiting, sys.byteorder)

    def send(self, pieces: Sequence[bytes | memoryview]) -> Future[None] | None:
        """Write; returns None if all bytes have left, or else the future of `write`.

        Raises `StreamClosedError` only if none have left.
        """
        left: Sequence[bytes | memoryview] = pieces
        if not self._write_buffer:
            self._check_closed()
            if not any(pieces):
                # OpenSSL does not define what writing zero bytes does.
                return None
            try:
                sent = self._send_at_once(pieces)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.close(exc_info=error)
                raise StreamClosedError(real_error=error) from error
            if len(pieces) == 1 and sent == len(pieces[0]):
                return None
            left = _without(sent, pieces)
            if not left:
                return None
        # The future of the last piece is done when all have left.
        written = None
        for piece in left or (b"",):
            if written is not None and self._closed:
                # It has failed. To write more would raise `StreamClosedError`, as if not one byte had left.
                return written
            written = self.write(piece)
        return written

    def _send_at_once(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.socket.sendmsg(pieces) if len(pieces) > 1 else self.socket.send(pieces[0])

    # The following methods override those of `IOStream`.

    def reading(self) -> bool:
        return super().reading() if self._on_data is None else not self.paused

    def _handle_events(self, fd: Any, events: int) -> None:
        if events != IOLoop.READ or self.paused or self._on_data is None or self._closed:
            self._handle_rarer_events(fd, events)
            return
        # `IOStream` would then work out which events it waits for: they have not changed.
        try:
            self._handle_read()
        except Exception as error:  # noqa: BLE001 - it is logged here; raised, it would be logged again, without limit
            _error_log.log(logging.ERROR, "closed a connection because the server failed", exc_info=error)
            self.close(exc_info=error)

    def _handle_rarer_events(self, fd: Any, events: int) -> None:
        if self.paused and events & IOLoop.READ and self._state is not None:
            # Only now that something has arrived is it worth telling the kernel about the pause.
            self._state &= ~IOLoop.READ
            self.io_loop.update_handler(fd, self._state)
            events &= ~IOLoop.READ
        if events:
            super()._handle_events(fd, events)

    def _handle_read(self) -> None:
        if self._on_data is None:
            super()._handle_read()
            return
        try:
            data = self.socket.recv(READ_SIZE)
        except (BlockingIOError, SSLWantReadError):
            return
        except OSError as error:
            if not self._is_connreset(error):
                _read_log.log(logging.INFO, "closed a connection because reading from it failed: %s", error)
            self.close(exc_info=error)
            return
        if data:
            self._on_data(data)
            if not self._closed and (number := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                # The client reset the connection after it had sent this. uvloop reports that once, with this very call.
                self.close(exc_info=OSError(number, os.strerror(number)))
        elif self._on_end is not None and self._on_end():
            # Nothing more will arrive, and the kernel would report that again and again.
            self.paused = True
        else:
            self.close()


class QuietSSLStream(SSLIOStream):
    """An `SSLIOStream` that logs few of the handshakes that fail: any client can cause thousands."""

    # Called when the handshake is complete.
    on_handshake: Callable[[], None] | None = None

    def _do_ssl_handshake(self) -> None:
        # `SSLIOStream` would log a warning for each.
        try:
            self.socket.do_handshake()
        except (SSLWantReadError, SSLWantWriteError) as error:
            self._handshake_reading = isinstance(error, SSLWantReadError)
            self._handshake_writing = not self._handshake_reading
            return
        except (OSError, AttributeError) as error:
            # The rest are clients that left: port checks, or resets before the TLS socket was made.
            if isinstance(error, SSLError) and not isinstance(error, (SSLEOFError, SSLZeroReturnError)):
                _handshake_log.log(logging.INFO, "a TLS handshake failed: %s", error)
            self.close(exc_info=error)
            return
        if self.on_handshake is not None:
            self.on_handshake()
        super()._do_ssl_handshake()


class PushSSLStream(QuietSSLStream, PushStream):
    """A `PushStream` with TLS. A read takes whole records, so none stays where the kernel does not see it."""

    # During the handshake the events that it waits for change.
    _handle_events = PushStream._handle_rarer_events

    def _send_at_once(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.write_to_fd(memoryview(b"".join(pieces)))

    def end_sending(self) -> bool:
        """Do nothing: an end that TLS has not announced looks like an attack (RFC 8446, section 6.1)."""
        return True

    def has_unread(self) -> bool:
        """Return False: it is not known, since the kernel has only parts of records."""
        return False


def _without(size: int, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    """Return the pieces without their first ``size`` bytes."""
    for position, piece in enumerate(pieces):
        if size < len(piece):
            return (memoryview(piece)[size:], *pieces[position + 1 :])
        size -= len(piece)
    return ()
