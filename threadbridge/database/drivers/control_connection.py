"""The control connection, which stops queries on others. It stays open, as the database may later refuse new ones."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from threadbridge.common import forks
from threadbridge.database.driver import StopFailed

# To how many servers connections are kept; the oldest is forgotten first.
MAX_SERVERS = 32

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


Way = Callable[[], ControlConnection]


class ControlConnections:
    """Keeps one control connection open; makes another while that is in use or if it does not work. Any thread.

    ``ways`` are functions that connect. Each is tried in turn until a connection does what it is asked.

    A lock guards the one that is kept while no thread uses it.
    """

    def __init__(self, ways: Sequence[Way], error: type[Exception]) -> None:
        self._ways = ways
        self._error = error
        self._idle: ControlConnection | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        forks.copies(self)

    def become_copy(self) -> None:
        """This is a forked process: its parent owns the connection, and a thread of the parent's may hold the lock."""
        self._idle = None
        self._lock = threading.Lock()

    def use(self, ask: Callable[[ControlConnection], _Result]) -> _Result:
        """Call a function with the connection; if it raises, again with a new one. Raises `StopFailed`."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None:
            # It may be closed after so long, or lead to a server that is out of service.
            with contextlib.suppress(StopFailed, self._error):
                return self._use(idle, ask)
        failures: list[Exception] = []
        for connect in self._ways:
            try:
                return self._use(connect(), ask)
            except (StopFailed, self._error) as error:
                failures.append(error)
        raise StopFailed("; ".join(map(str, failures))) from failures[-1]

    def _use(self, control: ControlConnection, ask: Callable[[ControlConnection], _Result]) -> _Result:
        try:
            result = ask(control)
        except BaseException:
            control.close()
            raise
        with self._lock:
            is_kept = self._idle is None and not self._is_closed
            if is_kept:
                self._idle = control
        if not is_kept:
            control.close()
        return result

    def close(self) -> None:
        """Keep no connection open from now on."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.close()


class ControlsByServer:
    """Keeps control connections to several servers, by what identifies each. Any thread."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error
        # Each operation on it is atomic.
        self._servers: dict[Hashable, ControlConnections] = {}
        self._is_closed = False

    def remember(self, server: Hashable, ways: Callable[[], Sequence[Way]]) -> ControlConnections:
        """The control connections to a server; ``ways`` gives those of `ControlConnections` if it is a new one."""
        found = self._servers.get(server)
        if found is None:
            found = self._servers.setdefault(server, ControlConnections(ways(), self._error))
            if self._is_closed:
                found.close()
            while len(self._servers) > MAX_SERVERS:
                self.forget(next(iter(self._servers)))
        return found

    def keep(self, server: Hashable, ask: Callable[[ControlConnection], object]) -> None:
        """Make or check one control connection, if the server is remembered; raises `StopFailed` if `ask` fails."""
        if (control := self._servers.get(server)) is not None:
            try:
                control.use(ask)
            except StopFailed:
                self.forget(server)
                raise

    def forget(self, server: Hashable) -> None:
        """Keep no control connection to a server that cannot be reached, until a connection of the pool comes there."""
        if (control := self._servers.pop(server, None)) is not None:
            control.close()

    @property
    def servers(self) -> list[Any]:
        """What identifies those that are remembered."""
        return list(self._servers)

    def close(self) -> None:
        """Close all, and keep none from now on."""
        self._is_closed = True
        for control in list(self._servers.values()):
            control.close()


def execute(connection: Any, sql: str, *parameters: object) -> tuple[Any, ...]:
    """Execute a statement and return the first row of its result; empty if there is none."""
    return next(iter(rows(connection, sql, *parameters)), ())


def rows(connection: Any, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Execute a statement and return the rows of its result, with texts as ``str``."""
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(sql, parameters or None)
        # Some drivers raise an error if there is no result.
        found = cursor.fetchall() if cursor.description else ()
    # The application's cursor class may give dictionaries, and its settings bytes.
    return [tuple(map(_text, row.values() if isinstance(row, dict) else row)) for row in found]


def _text(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else value
