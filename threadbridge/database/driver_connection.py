"""A connection of the driver's: how its statements are stopped, and how it is cut when nothing else helps."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

from threadbridge.common import forks
from threadbridge.database.driver import Database, Session
from threadbridge.database.predecessors import ConnectionList, Entry, Left

# Seconds of silence until the kernel asks whether the peer is still there, between two such questions, and how many it
# may leave unanswered: a lost network is noticed after 60 s, though no query is limited to that.
KEEPIDLE = 30
KEEPINTVL = 10
KEEPCNT = 3
# What Linux has unless it is told otherwise; a shorter time was chosen by somebody.
LONGEST_SYSTEM_KEEPIDLE = 7200


class DriverConnection:
    """A connection that the driver has just made, with what it takes to stop its statements. Worker side.

    It can be cut at once, since the database may not answer its first statements; `prepare` comes before all others.
    """

    # Its number in the database's list of processes, if that is known.
    number: int | None = None
    session: Session
    _identity: Any = None
    _entry: Entry | None = None

    def __init__(self, connection: Any, database: Database) -> None:
        self._connection = connection
        self._database = database
        # Asked now: a driver does not answer while another thread uses the connection.
        self._descriptor: int | None = connection.fileno() if hasattr(connection, "fileno") else None
        self._file = None if self._descriptor is None else _file(self._descriptor)
        self._poll = select.poll()
        if self._descriptor is not None:
            self._poll.register(self._descriptor, select.POLLIN)
        if self._descriptor is not None:
            notice_lost_peer(self._descriptor)
        forks.connects(self)

    def prepare(self, listed: ConnectionList, comment: Callable[[], str] | None = None) -> None:
        """Ask the database which connection it is, and watch from now on what is sent on it. Worker side.

        :param listed: where it is put down, so that another process can end it if this one is killed.
        :param comment: what each statement is to begin with; see `Database.prepare`.

        Raises what the driver raises when the database cannot say that.
        """
        identity = self._database.identify(self._connection)
        self.number = self._database.number(identity)
        self._entry = listed.enter(self._database, identity)
        self._identity = identity
        self.session = self._database.prepare(self._connection, comment)

    @property
    def descriptor(self) -> int | None:
        """Its socket's file descriptor, as long as it is open. Any thread."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None and _file(self._descriptor) == self._file:
                return self._descriptor
        return None

    def is_quiet(self) -> bool:
        """Whether it is open and the server has said nothing unasked, as it does when it closes it. Worker side.

        Needs no answer of the server's, unlike a ping.
        """
        try:
            # A closed one has no number, and what was its number may be another file's.
            return self._connection.fileno() == self._descriptor and not self._poll.poll(0)
        except Exception:  # noqa: BLE001 - whatever the driver raises, it is of no more use
            return False

    def stop(self, *, waits: bool = False) -> bool:
        """See `Database.stop`."""
        return self._identity is not None and self._database.stop(self._connection, self._identity, waits=waits)

    def sever(self) -> Left | None:
        """Have whoever waits for the database on it fail at once; what is left of it there, if that can be found.

        Any thread.
        """
        self._shut_down()
        return None if self._identity is None else Left(self._database, self._identity, self._entry)

    def _shut_down(self) -> None:
        if self._descriptor is None:
            return
        try:
            descriptor = os.dup(self._descriptor)
        except OSError:
            # It is closed already.
            return
        try:
            # The number may be another file's by now.
            if _file(descriptor) == self._file:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as same:
                    same.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(descriptor)


def notice_lost_peer(descriptor: int) -> None:
    """Have the kernel end a TCP connection whose peer does not answer, however long its statement may take."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as same:
        if same.family not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
            return
        if same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < LONGEST_SYSTEM_KEEPIDLE:
            # The application, or its database driver, has chosen times of its own.
            return
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPIDLE)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPINTVL)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPCNT)
        # The same for what was sent and is not acknowledged.
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (KEEPIDLE + KEEPCNT * KEEPINTVL))


def _file(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
