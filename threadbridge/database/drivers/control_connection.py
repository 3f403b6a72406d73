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
    """A connection; ``server`` is what the kind of database needs to know about the server to which it leads."""

    server: Any = None

    def __init__(self, connection: Any, descriptor: Callable[[Any], int | None]) -> None:
        self.connection = connection
        self.descriptor = descriptor(connection)
        forks.connects(self)

    def close(self) -> None:
        self.descriptor = None
        with contextlib.suppress(Exception):
            self.connection.close()


class ControlConnections:
    """Keeps one control connection open; makes another if that is in use or does not work. Any thread."""

    def __init__(self, connect: Callable[[], ControlConnection], error: type[Exception]) -> None:
        self._connect = connect
        self._error = error
        # At most one or, after a race, two. A deque's methods need no lock.
        self._idle: deque[ControlConnection] = deque()
        self._is_closed = False

    def use(self, ask: Callable[[ControlConnection], _Result]) -> _Result:
        """Call a function with the connection; if it raises, again with a new one. Raises `StopFailed`."""
        # One that was idle for too long may be closed, or lead to a server that is out of service.
        with contextlib.suppress(IndexError, StopFailed, self._error):
            return self._use(self._idle.popleft(), ask)
        try:
            return self._use(self._connect(), ask)
        except self._error as error:
            raise StopFailed(str(error)) from error

    def _use(self, control: ControlConnection, ask: Callable[[ControlConnection], _Result]) -> _Result:
        try:
            result = ask(control)
        except BaseException:
            control.close()
            raise
        if self._idle or self._is_closed:
            control.close()
        else:
            self._idle.append(control)
        return result

    def close(self) -> None:
        """Keep no connection open from now on."""
        self._is_closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.popleft().close()


def execute(connection: Any, sql: str, *parameters: object) -> tuple[Any, ...]:
    """Execute a statement and return the first row of its result; empty if there is none."""
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(sql, parameters or None)
        # Some drivers raise an error if there is no result.
        row = (cursor.fetchone() if cursor.description else None) or ()
    # The application's cursor class may give dictionaries.
    return tuple(row.values() if isinstance(row, dict) else row)
