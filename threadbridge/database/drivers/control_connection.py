"""The control connection, which stops queries on others. It stays open, as the database may later refuse new ones."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from threadbridge.common import forks
from threadbridge.database.driver import StopFailed

_Result = TypeVar("_Result")


class ControlConnection:
    """A control connection.

    :param server: what the kind of database needs to know about the server to which it leads.
    """

    def __init__(self, connection: Any, server: Any = None) -> None:
        self.connection = connection
        self.server = server
        self.descriptor: int | None = connection.fileno()
        forks.connects(self)

    def close(self) -> None:
        """Close it, in whatever state it is. Any thread."""
        self.descriptor = None
        with contextlib.suppress(Exception):
            self.connection.close()


class ControlConnections:
    """Keeps one control connection open; makes another if that is in use or does not work. Any thread.

    :param connect: makes a control connection.
    :param error: the driver's base class of exceptions.
    """

    def __init__(self, connect: Callable[[], ControlConnection], error: type[Exception]) -> None:
        self._connect = connect
        self._error = error
        # At most one or, after a race, two. A deque's methods need no lock.
        self._idle: deque[ControlConnection] = deque()
        self._is_closed = False

    def use(self, ask: Callable[[ControlConnection], _Result]) -> _Result:
        """Call a function with the connection and return its result; if it raises, call it again with a new one.

        Raises `StopFailed` if the driver raises anything.
        """
        if (idle := self._take()) is not None:
            try:
                result = ask(idle)
            except (self._error, StopFailed):
                # It may have been idle for too long, or lead to a server that is out of service; a new one may not.
                idle.close()
            else:
                self._give_back(idle)
                return result
        try:
            made = self._connect()
            try:
                result = ask(made)
            except BaseException:
                made.close()
                raise
        except self._error as error:
            raise StopFailed(str(error)) from error
        self._give_back(made)
        return result

    def close(self) -> None:
        """Close the connection, and keep none open from now on. Any thread."""
        self._is_closed = True
        while (idle := self._take()) is not None:
            idle.close()

    def _take(self) -> ControlConnection | None:
        with contextlib.suppress(IndexError):
            return self._idle.popleft()
        return None

    def _give_back(self, control: ControlConnection) -> None:
        if self._idle or self._is_closed:
            control.close()
        else:
            self._idle.append(control)
