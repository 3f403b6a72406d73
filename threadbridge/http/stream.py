"""An `IOStream` that pushes received data to a callback and tries to write at once."""

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

logger = logging.getLogger("threadbridge")
_handshake_log, _read_log, _error_log = RepeatedLog(logger), RepeatedLog(logger), RepeatedLog(logger)

READ_SIZE = 65536

# The private methods and attributes of Tornado's streams that this module uses.
_METHODS = ("_add_io_state", "_check_closed", "_do_ssl_handshake", "_handle_events", "_handle_read", "_is_connreset")
_ATTRIBUTES = ("_closed", "_read_buffer", "_read_buffer_size", "_state", "_total_write_done_index", "_write_buffer")


def check_tornado() -> None:
    """Raise ``ValueError`` for a Tornado whose streams have not what is used of their privates."""
    # There are no streams without a loop, which may not run yet: their constructor names what they will have.
    made = BaseIOStream.__init__.__code__.co_names
    missing = [name for name in _METHODS if not hasattr(SSLIOStream, name)]
    missing += [name for name in _ATTRIBUTES if name not in made]
    if missing:
        raise ValueError(
            f"the streams of Tornado {tornado.version} have no {', '.join(missing)}; this version of threadbridge was "
            "made for Tornado 6.6: install that"
        )


class PushStream(IOStream):
    """An `IOStream` that calls a function with the bytes that arrive, after `receive`. Loop side.

    `IOStream` itself makes a `Future` for each read and each write, and tries to read before it waits; on a connection
    whose requests and responses fit into one packet each, that costs more than the packets. Without `receive`, and
    again after ``receive(None)``, it is an ordinary `IOStream`.
    """

    _on_data: Callable[[bytes], None] | None = None
    _on_end: Callable[[], bool] | None = None
    # Whether nothing is read: see `pause_reading`.
    paused = False

    def receive(self, on_data: Callable[[bytes], None] | None, on_end: Callable[[], bool] | None = None) -> None:
        """Have ``on_data`` called with what arrives, or, with None, keep it for ``read_bytes`` and its like.

        ``on_end()`` is called when the client has sent its last byte, and may still read; the stream is closed unless
        it gives true.
        """
        self._on_data = on_data
        self._on_end = on_end
        self.paused = False
        self._add_io_state(IOLoop.READ)

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel. That the client has left is noticed only after `resume_reading`."""
        self.paused = True

    def resume_reading(self) -> None:
        """Go on after `pause_reading`; does nothing without it."""
        if self.paused:
            self.paused = False
            self._add_io_state(IOLoop.READ)

    def has_unread(self) -> bool:
        """Whether something has arrived that is still in the kernel."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            # BlockingIOError: nothing has; any other: nothing more will be had.
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
        """How many bytes the client's system has got; of use is the difference between two answers while `writing`."""
        try:
            waiting = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        except OSError:
            # The client has left.
            return self._total_write_done_index
        return self._total_write_done_index - int.from_bytes(waiting, sys.byteorder)

    def send(self, *pieces: bytes | memoryview) -> Future[None] | None:
        """Write, and give None when all of it has left, or else `write`'s future. Raises `StreamClosedError`."""
        left: Sequence[bytes | memoryview] = pieces
        if not self._write_buffer:
            self._check_closed()
            if not any(pieces):
                # OpenSSL does not say what writing nothing does.
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
        # The last one's future is done when all have left.
        return [self.write(piece) for piece in left or (b"",)][-1]

    def _send_at_once(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.socket.sendmsg(pieces) if len(pieces) > 1 else self.socket.send(pieces[0])

    # What follows replaces parts of `IOStream`, whose methods they are.

    def reading(self) -> bool:
        return super().reading() if self._on_data is None else not self.paused

    def _handle_events(self, fd: Any, events: int) -> None:
        if events != IOLoop.READ or self.paused or self._on_data is None or self._closed:
            self._handle_rarer_events(fd, events)
            return
        # `IOStream` would go on to see what it now waits for: still the same.
        try:
            self._handle_read()
        except Exception as error:  # noqa: BLE001 - it is logged here; raised, it would be logged again, without limit
            _error_log.log(logging.ERROR, "a connection is closed, for the server failed", exc_info=error)
            self.close(exc_info=error)

    def _handle_rarer_events(self, fd: Any, events: int) -> None:
        if self.paused and events & IOLoop.READ and self._state is not None:
            # Only now, when something has come, is it worth to tell the kernel of the pause.
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
                _read_log.log(logging.INFO, "a connection is closed, for reading from it failed: %s", error)
            self.close(exc_info=error)
            return
        if data:
            self._on_data(data)
            if not self._closed and (number := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                # Reset behind what it has sent. uvloop tells of that once, and has told of it: this was the call.
                self.close(exc_info=OSError(number, os.strerror(number)))
        elif self._on_end is not None and self._on_end():
            # Nothing more will come, and the kernel would say so again and again.
            self.paused = True
        else:
            self.close()


class PushSSLStream(SSLIOStream, PushStream):
    """The same with TLS. A read takes whole records, so that none is left where the kernel does not see it."""

    # Its handshake waits now for this, now for that.
    _handle_events = PushStream._handle_rarer_events

    def _do_ssl_handshake(self) -> None:
        # `SSLIOStream` would log a warning for each client that fails.
        try:
            self.socket.do_handshake()
        except (SSLWantReadError, SSLWantWriteError):
            pass
        except (OSError, AttributeError) as error:
            # Others have left: a check whether the port is open, or a reset before there was a TLS socket.
            if isinstance(error, SSLError) and not isinstance(error, (SSLEOFError, SSLZeroReturnError)):
                _handshake_log.log(logging.INFO, "a client's TLS handshake failed: %s", error)
            self.close(exc_info=error)
            return
        super()._do_ssl_handshake()

    def _send_at_once(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.write_to_fd(memoryview(b"".join(pieces)))

    def end_sending(self) -> bool:
        """Do nothing: an end that TLS has not announced looks like an attack (RFC 8446, section 6.1)."""
        return True

    def has_unread(self) -> bool:
        """Not known: what the kernel has are parts of records."""
        return False


def _without(size: int, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    """What is left of the pieces without the first bytes."""
    for position, piece in enumerate(pieces):
        if size < len(piece):
            return (memoryview(piece)[size:], *pieces[position + 1 :])
        size -= len(piece)
    return ()
