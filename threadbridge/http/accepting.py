"""Accepts connections on a listening socket, also when the process has hardly a file descriptor left. Loop side."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from tornado.ioloop import IOLoop

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# Connections that are accepted in one turn of the loop.
ACCEPTED_AT_ONCE = 128
# File descriptors that clients never get: they are left for the operators' port, the database and temporary files.
RESERVED = 16
# Seconds for which nothing is accepted when there are no more.
PAUSE = 0.2
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BODY = b"503 Service Unavailable: too many connections\n"
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n" % len(_BODY)
)
# Those whose reserve is in use. Clients must not get it when it comes free.
_without_reserve: set[Acceptor] = set()
_exhausted_log = RepeatedLog(logger)


def refuse(connection: socket.socket, answers: bool) -> tuple[bytes, int]:
    """Close a connection that cannot be served; what had come of its request, and the size of the answer's body.

    :param answers: whether the client is told so, 503 in plain HTTP; with TLS it cannot be.
    """
    received, sent = b"", 0
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        if answers:
            connection.send(_REFUSAL + _BODY)
            sent = len(_BODY)
            connection.shutdown(socket.SHUT_WR)
            # What is not read would have the answer reset.
            received = connection.recv(65536)
    return received, sent


class Acceptor:
    """Calls a function with each connection and its client's address, until it is closed.

    :param on_scarce: called instead while descriptors are scarce; it must close the connection soon.
    :param leaves: how many descriptors these clients leave to others.

    The kernel then keeps the other clients waiting; nothing spins. One descriptor is held in reserve, and given up when
    there are no others left: one connection at a time can be accepted even then.
    """

    def __init__(
        self,
        listener: socket.socket,
        on_connection: Callable[[socket.socket, Any], None],
        on_scarce: Callable[[socket.socket, Any], None],
        leaves: int,
    ) -> None:
        self._listener = listener
        self._on_connection = on_connection
        self._on_scarce = on_scarce
        self._leaves = leaves
        self._reserve: int | None = None
        self._loop = IOLoop.current()
        self._resuming: asyncio.TimerHandle | None = None
        self._closed = False
        self._resume()

    def _resume(self) -> None:
        self._resuming = None
        self._hold_reserve()
        self._loop.add_handler(self._listener, self._accept, IOLoop.READ)

    def _accept(self, listener: socket.socket, events: int) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            # Whoever is called may have closed this.
            if self._closed:
                return
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._accept_with_reserve()
                self._pause(error.strerror or str(error))
                return
            # The lowest free number is given: a high one shows that few are left.
            is_high = connection.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - self._leaves
            if is_high or (self._leaves and _without_reserve):
                self._on_scarce(connection, address)
                self._pause("the last ones are kept for the operators' port, the database and temporary files")
                return
            self._on_connection(connection, address)

    def _accept_with_reserve(self) -> None:
        if self._reserve is None:
            return
        self._give_up_reserve()
        _without_reserve.add(self)
        try:
            connection, address = self._listener.accept()
        except OSError:
            # Another thread was faster, or the client has left.
            return
        self._on_scarce(connection, address)
        self._hold_reserve()

    def _hold_reserve(self) -> None:
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)
                _without_reserve.discard(self)

    def _give_up_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _pause(self, why: str) -> None:
        if self._closed:
            return
        _exhausted_log.log(
            logging.ERROR,
            "no file descriptors left for new connections: %s. Clients wait, or are answered 503, until others leave; "
            "raise the limit with LimitNOFILE= or ulimit -n",
            why,
        )
        self._loop.remove_handler(self._listener)
        self._resuming = asyncio.get_running_loop().call_later(PAUSE, self._resume)

    def close(self) -> None:
        """Accept no more. The socket stays open."""
        self._closed = True
        self._give_up_reserve()
        _without_reserve.discard(self)
        if self._resuming is not None:
            self._resuming.cancel()
        else:
            self._loop.remove_handler(self._listener)
