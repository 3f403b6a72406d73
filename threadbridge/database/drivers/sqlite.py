"""SQLite; only the modules whose names begin with ``sqlite`` know it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from threadbridge.database.driver import ConnectionSettings, Session, Tag, attributes_of, name_of
from threadbridge.database.drivers.sqlite_session import SQLiteSession

# The file, its directory or its disk cannot be used. That another connection has locked it (SQLITE_BUSY) is no outage.
_OUTAGE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
# The place of ``check_same_thread`` among the arguments of ``connect``.
_SAME_THREAD = 4


class SQLite:
    """Stops statements by ``interrupt``, which the driver allows in any thread. See `Database`.

    This does not end a wait for another connection's lock: that ends after the ``timeout`` of ``connect``, and the
    statement then runs. Connections have no sockets, and nothing is left of them when their process ends.
    """

    identity: type[Any] = tuple
    timeouts: Mapping[str, Any] = {}

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        self.driver = driver
        parameters = {**dict(zip(("database",), settings.args, strict=False)), **settings.kwargs}
        self.name = name_of(driver, settings, parameters)
        self.attributes: Mapping[str, str | int] = attributes_of("sqlite", parameters)
        # A pool hands its connections from thread to thread.
        is_given = len(settings.args) > _SAME_THREAD
        self.defaults: Mapping[str, Any] = {} if is_given else {"check_same_thread": False}

    def descriptor(self, connection: Any) -> None:
        return None

    def identify(self, connection: Any) -> None:
        return None

    def prepare(self, connection: Any, identity: None, tag: Tag | None) -> Session:
        """The comments are of no use, as there is no server with a list of statements."""
        return SQLiteSession(connection)

    def keep_control(self, server: str) -> None:
        """See `Database`. There is no control connection."""

    def stop_query(self, connection: Any, identity: None, *, waits: bool = False) -> bool:
        try:
            connection.interrupt()
        except sqlite3.ProgrammingError:
            # It is closed.
            return False
        # It is not known whether it met a statement.
        return waits

    def kill(self, identity: None) -> bool:
        return True

    def close(self) -> None:
        """See `Database`."""

    def is_statement_error(self, error: BaseException) -> bool:
        return _code(error) == sqlite3.SQLITE_INTERRUPT

    def is_outage(self, error: BaseException) -> bool:
        return _code(error) in _OUTAGE

    def is_lost(self, error: BaseException) -> bool:
        return False

    def cancelled(self) -> Exception:
        error = sqlite3.OperationalError("interrupted: the request was cancelled")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_INTERRUPT, "SQLITE_INTERRUPT"
        return error


def _code(error: BaseException) -> int | None:
    """The primary result code of the driver's error."""
    code = getattr(error, "sqlite_errorcode", None)
    # The higher bits say more about it.
    return None if code is None else code & 0xFF
