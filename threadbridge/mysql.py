"""MySQL and MariaDB: the only module that knows them."""

from __future__ import annotations

import importlib
import threading
from typing import Any, NamedTuple

from threadbridge.database import ConnectionSettings, StopFailed

# Seconds to connect, and to wait for the answer to a KILL.
CONTROL_TIMEOUT = 3

# ER_QUERY_INTERRUPTED; MariaDB's ER_STATEMENT_TIMEOUT; MySQL's ER_QUERY_TIMEOUT.
STATEMENT_ERRORS = frozenset({1317, 1969, 3024})
# The client's: CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR, CR_UNKNOWN_HOST, CR_SERVER_GONE_ERROR, CR_SERVER_LOST and its
# extended twin. The server's: ER_CON_COUNT_ERROR, ER_SERVER_SHUTDOWN, ER_CONNECTION_KILLED.
OUTAGE_ERRORS = frozenset({2002, 2003, 2005, 2006, 2013, 2055, 1040, 1053, 1927})
ER_NO_SUCH_THREAD = 1094

_SERVER = "SELECT CONCAT_WS('|', @@hostname, @@port, @@server_id, @@pid_file)"


class Identity(NamedTuple):
    """A connection's thread id, and which server has given it."""

    thread_id: int
    server: str


class MySQL:
    """Stops queries with ``KILL QUERY`` on a connection of its own. See `threadbridge.database.Database`."""

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        self._error: type[Exception] = importlib.import_module(driver).OperationalError
        self._settings = settings
        # The control connection is the guard's thread's; the lock is for a test or a tool that stops by itself.
        self._lock = threading.Lock()
        self._control: Any = None
        self._control_server = ""

    def identify(self, connection: Any) -> Identity:
        """See `Database`; costs one round trip for each connection made."""
        return Identity(connection.thread_id(), _server_of(connection))

    def stop(self, connection: Any, identity: Identity) -> None:
        """See `Database`."""
        with self._lock:
            fresh = self._control is None
            try:
                self._kill(identity)
            except self._error as error:
                self._drop_control()
                if fresh:
                    raise StopFailed(str(error)) from error
                # The control connection may only have been idle for too long.
                try:
                    self._kill(identity)
                except self._error as again:
                    self._drop_control()
                    raise StopFailed(str(again)) from again

    def _kill(self, identity: Identity) -> None:
        if self._control is None:
            timeouts = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), CONTROL_TIMEOUT)
            self._control = self._settings.connect(*self._settings.args, **{**self._settings.kwargs, **timeouts})
            self._control_server = _server_of(self._control)
        if self._control_server != identity.server:
            self._drop_control()
            raise StopFailed(f"the control connection came to {self._control_server}, not to {identity.server}")
        cursor = self._control.cursor()
        try:
            cursor.execute("KILL QUERY %s", (identity.thread_id,))
        except self._error as error:
            if error.args[:1] != (ER_NO_SUCH_THREAD,):
                raise
        finally:
            cursor.close()

    def _drop_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return bool(error.args) and error.args[0] in STATEMENT_ERRORS

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        return isinstance(error, self._error) and bool(error.args) and error.args[0] in OUTAGE_ERRORS

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._error(1317, "Query execution was interrupted: nobody waits for this request any more")


def _server_of(connection: Any) -> str:
    cursor = connection.cursor()
    try:
        cursor.execute(_SERVER)
        row = cursor.fetchone()
    finally:
        cursor.close()
    # A cursor class of the application's may give dictionaries.
    return str(next(iter(row.values())) if isinstance(row, dict) else row[0])
