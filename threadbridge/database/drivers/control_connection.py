"""The connection by which queries on others are stopped: kept for the next time, as the database may have none left."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from threadbridge.common import forks
from threadbridge.database.driver import StopFailed

_Result = TypeVar("_Result")


class ControlConnection:
    """One such connection, and what is known of the server that it leads to.

    :param about: whatever the kind of database needs to know of it.
    """

    def __init__(self, connection: Any, about: Any = None) -> None:
        self.connection = connection
        self.about = about
        self.descriptor: int | None = connection.fileno()
        forks.connects(self)

    def close(self) -> None:
        """Close it, whatever state it is in."""
        self.descriptor = None
        with contextlib.suppress(Exception):
            self.connection.close()


class ControlConnections:
    """Keeps one such connection; makes another when that is in use, or does not work. Any thread.

    :param connect: makes one.
    :param error: what the driver raises.
    """

    def __init__(self, connect: Callable[[], ControlConnection], error: type[Exception]) -> None:
        self._connect = connect
        self._error = error
        # A deque's methods need no lock: at most one or, after a race, two.
        self._kept: deque[ControlConnection] = deque()
        self._is_closed = False

    def use(self, ask: Callable[[ControlConnection], _Result]) -> _Result:
        """What the function gives, called with the connection, and again with a new one if it raises.

        Raises `StopFailed` where the driver raises anything.
        """
        if (kept := self._take()) is not None:
            try:
                result = ask(kept)
            except (self._error, StopFailed):
                # It may have been idle for too long, or lead to a server that is out of service; a new one may not.
                kept.close()
            else:
                self._give_back(kept)
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
        """Keep none any more."""
        self._is_closed = True
        while (kept := self._take()) is not None:
            kept.close()

    def _take(self) -> ControlConnection | None:
        with contextlib.suppress(IndexError):
            return self._kept.popleft()
        return None

    def _give_back(self, control: ControlConnection) -> None:
        if self._kept or self._is_closed:
            control.close()
        else:
            self._kept.append(control)
