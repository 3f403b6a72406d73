"""Accepts connections on a listening socket, even when the process is running out of file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

from tornado.ioloop import IOLoop

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# Connections accepted in one iteration of the loop.
ACCEPTED_AT_ONCE: Final = 128
# File descriptors kept from clients, for the operators' port, the database and temporary files.
RESERVED: Final = 16
# Seconds without accepting when no descriptors are left.
PAUSE: Final = 0.2
# Seconds between two looks at the limit of descriptors, while no number is higher than before.
LOOK_INTERVAL: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Acceptors whose reserved descriptor is in use. Clients must not get it when it becomes free.
_without_reserve: set[Acceptor] = set()
_exhausted_log = RepeatedLog(logger)


class Acceptor:
    """Calls a function with each new connection and its client's address, until it is closed.

    :param on_scarce: called instead while descriptors are scarce; it must close the connection soon.
    :param leaves: number of descriptors to keep from these clients.

    One descriptor is held in reserve and released when no others are left, so that one connection at a time can be
    accepted even then; other clients wait in the kernel.
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
        # It may not run yet. This also loads what `IOStream` needs, while there are descriptors.
        self._loop: asyncio.AbstractEventLoop = IOLoop.current().asyncio_loop  # type: ignore[attr-defined]
        self._kind = (listener.family, listener.type, listener.proto)
        # The limit of descriptors at the last look, the highest number that was given out before that, and the time of
        # the next look if no higher one is.
        self._limit = self._highest = 0
        self._look_at = 0.0
        self._resuming: asyncio.TimerHandle | None = None
        self._closed = False
        self._resume()

    def _resume(self) -> None:
        self._resuming = None
        self._hold_reserve()
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            # The callback may have closed this acceptor.
            if self._closed:
                return
            try:
                descriptor, address = self._listener._accept()  # type: ignore[attr-defined]
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
            # As `socket.accept` does, which also works out family and type again.
            connection = socket.socket(*self._kind, fileno=descriptor)
            if self._is_high(descriptor) or (self._leaves and _without_reserve):
                self._on_scarce(connection, address)
                self._pause("the last ones are reserved for the operators' port, the database and temporary files")
                return
            self._on_connection(connection, address)

    def _is_high(self, descriptor: int) -> bool:
        """Whether few descriptors are left: the kernel gives out the lowest free number."""
        now = self._loop.time()
        if descriptor > self._highest or now >= self._look_at:
            # The limit may change while the process runs.
            self._highest = descriptor
            self._look_at = now + LOOK_INTERVAL
            self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return descriptor >= self._limit - self._leaves

    def _accept_with_reserve(self) -> None:
        if self._reserve is None:
            return
        self._release_reserve()
        _without_reserve.add(self)
        try:
            connection, address = self._listener.accept()
        except OSError:
            # Another thread took the descriptor, or the client has left.
            return
        self._on_scarce(connection, address)
        self._hold_reserve()

    def _hold_reserve(self) -> None:
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)
                _without_reserve.discard(self)

    def _release_reserve(self) -> None:
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
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(PAUSE, self._resume)

    def close(self) -> None:
        """Stop accepting. The socket stays open."""
        self._closed = True
        self._release_reserve()
        _without_reserve.discard(self)
        if self._resuming is not None:
            self._resuming.cancel()
        else:
            self._loop.remove_reader(self._listener)
