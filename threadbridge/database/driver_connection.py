"""A driver's connection: how its statements are stopped, and how it is cut if that does not help."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import weakref
from collections.abc import Callable
from typing import Any

from threadbridge.common import forks
from threadbridge.database.driver import Database, Identity, Session, Tag
from threadbridge.database.predecessors import ConnectionList, Entry
from threadbridge.database.stopper import Orphan

# TCP keepalive: seconds of silence until the first probe, seconds between probes, and how many may go unanswered. They
# detect a lost network after 60 s, however long queries may take.
KEEPIDLE = 30
KEEPINTVL = 10
KEEPCNT = 3
# Linux's default. A shorter time was chosen by the application, the driver or an administrator.
LONGEST_SYSTEM_KEEPIDLE = 7200

# Of all guards.
_connections: weakref.WeakSet[Any] = weakref.WeakSet()


class DriverConnection:
    """A connection that the driver has just made. The worker owns the state; other threads may read it."""

    session: Session
    identity: Identity | None = None
    _entry: Entry | None = None
    _is_prepared = False

    def __init__(self, connection: Any, database: Database) -> None:
        # A forgotten connection is closed at once, although it may lead to this object.
        self._connection = _reference(connection)
        self.database = database
        # Read now: a driver may not answer while another thread uses the connection.
        self._descriptor = database.descriptor(connection)
        self._file: tuple[int, int] | None = None
        if self._descriptor is not None:
            self._file = _file(self._descriptor)
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)
            notice_lost_peer(self._descriptor)
            forks.connects(self)

    def is_of(self, connection: object) -> bool:
        """Whether this is about the driver's object ``connection``."""
        return self._connection() is connection

    def prepare(self, listed: ConnectionList, tag: Tag | None = None) -> None:
        """Identify the connection, list it, and start observing what is sent on it. Raises what the driver raises."""
        connection = self._connection()
        identity = self.database.identify(connection)
        if identity is not None:
            self._entry = listed.enter(self.database, identity)
        self.identity = identity
        self.session = self.database.prepare(connection, identity, tag)
        self._is_prepared = True

    @property
    def server(self) -> str:
        """See `Identity.server`; "" if the connection is not yet identified, or has no server. Any thread."""
        return "" if self.identity is None else self.identity.server

    @property
    def descriptor(self) -> int | None:
        """The file descriptor of its socket; None once it is closed. Any thread."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None and _file(self._descriptor) == self._file:
                return self._descriptor
        return None

    def is_quiet(self) -> bool:
        """Whether it is open and has nothing to read. Unlike a ping, this needs no answer from the server.

        True if there is no descriptor by which to tell.
        """
        if self._descriptor is None:
            return True
        try:
            # A connection that the server has closed can be read. The descriptor may now be another file's.
            return self.database.descriptor(self._connection()) == self._descriptor and not self._poll.poll(0)
        except Exception:  # noqa: BLE001 - whatever the driver raises, the connection is of no more use
            return False

    def stop_query(self, *, waits: bool = False) -> bool:
        """See `Database.stop_query`."""
        connection = self._connection()
        if connection is None or not self._is_prepared:
            return False
        return self.database.stop_query(connection, self.identity, waits=waits)

    def sever(self) -> Orphan | None:
        """Cut the connection, even before `prepare` is answered, so that a thread waiting on it fails. Any thread.

        Returns the orphan that this leaves in the database; None if the connection was not yet identified. Without a
        descriptor, only the database can end the connection, when it ends the orphan.
        """
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            # -1 is refused.
            copy = os.dup(-1 if self._descriptor is None else self._descriptor)
            stack.callback(os.close, copy)
            # The number may now be another file's.
            if _file(copy) == self._file:
                stack.enter_context(socket.socket(fileno=os.dup(copy))).shutdown(socket.SHUT_RDWR)
        return None if self.identity is None else Orphan(self.database, self.identity, self._entry)


def _reference(connection: Any) -> Callable[[], Any]:
    try:
        _connections.add(connection)
    except TypeError:
        # There are no weak references to those of sqlite3.
        return lambda: connection
    return weakref.ref(connection)


def is_guarded(connection: object) -> bool:
    """Whether a guard has this connection of the driver's. Any thread."""
    return connection in _connections


def notice_lost_peer(descriptor: int) -> None:
    """Make the kernel close a TCP connection whose peer is gone, however long a statement may take."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as same:
        if same.family not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
            return
        if same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < LONGEST_SYSTEM_KEEPIDLE:
            return
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPIDLE)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPINTVL)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPCNT)
        # The same limit for data that was sent and is not acknowledged.
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (KEEPIDLE + KEEPCNT * KEEPINTVL))


def _file(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
