"""A connection of the driver's: how its statements are stopped, and how it is cut when nothing else helps."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from threadbridge.database import Database


class DriverConnection:
    """A connection that the driver has just made, with what it takes to stop its statements. Worker side.

    :param comment: what each statement is to begin with; see `Database.prepare`.

    Raises what the driver raises when the database cannot say which connection it is.
    """

    def __init__(self, connection: Any, database: Database, comment: Callable[[], str] | None = None) -> None:
        self._connection = connection
        self._database = database
        self._identity = database.identify(connection)
        self.number = database.number(self._identity)
        # Asked now: a driver does not answer while another thread uses the connection.
        self._descriptor: int | None = connection.fileno() if hasattr(connection, "fileno") else None
        self._file = None if self._descriptor is None else _file(self._descriptor)
        self._poll = select.poll()
        if self._descriptor is not None:
            self._poll.register(self._descriptor, select.POLLIN)
        self._session = database.prepare(connection, comment)

    def is_quiet(self) -> bool:
        """Whether it is open and the server has said nothing unasked, as it does when it closes it. Worker side.

        Needs no answer of the server's, unlike a ping.
        """
        with contextlib.suppress(Exception):
            # A closed one has no number, and what was its number may be another file's.
            return self._connection.fileno() == self._descriptor and not self._poll.poll(0)
        return False

    def begin_rollback(self) -> bool:
        """Send a rollback whose end nobody has to wait for; whether that was possible. Any thread that may wait."""
        return self._session is not None and self._session.begin_rollback()

    def end_rollback(self) -> None:
        """Read the answer to `begin_rollback`. Worker side. Raises what the driver raises when it did not succeed."""
        assert self._session is not None
        self._session.end_rollback()

    def stop(self) -> None:
        """Stop the statement that runs on it, if one does. The stopper's thread. Raises `StopFailed`."""
        self._database.stop(self._connection, self._identity)

    def sever(self) -> None:
        """Have whoever waits for the database on it fail at once. The stopper's thread."""
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


def _file(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
