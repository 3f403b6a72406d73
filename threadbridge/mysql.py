"""MySQL and MariaDB: the only module that knows them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from threadbridge.database import ConnectionSettings, Session
from threadbridge.mysql_control import (
    CONTROL_TIMEOUT,
    ER_UNKNOWN_SYSTEM_VARIABLE,
    Control,
    Identity,
    execute,
    is_mariadb,
)
from threadbridge.mysql_session import MySQLSession

# Seconds to connect, for connections whose settings say nothing about it.
CONNECT_TIMEOUT = 10
# Seconds that the driver waits for the network beyond the limit for a statement.
NETWORK_MARGIN = 10

# ER_QUERY_INTERRUPTED; MariaDB's ER_STATEMENT_TIMEOUT; MySQL's ER_QUERY_TIMEOUT.
STATEMENT_ERRORS = frozenset({1317, 1969, 3024})
# The client's: CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR, CR_UNKNOWN_HOST, CR_SERVER_GONE_ERROR, CR_SERVER_LOST and its
# extended twin. The server's: ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS, ER_SERVER_SHUTDOWN,
# ER_CONNECTION_KILLED.
OUTAGE_ERRORS = frozenset({2002, 2003, 2005, 2006, 2013, 2055, 1040, 1203, 1053, 1927})

# Whoever operates the server, or the application, may have set limits of their own; those stay.
_LIMIT = "{0} = IF(@@session.{0} = 0 AND @@global.{0} = 0, {1}, @@session.{0})"


class MySQL:
    """Stops queries with ``KILL QUERY`` on a connection of its own. See `threadbridge.database.Database`."""

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._operational: type[Exception] = module.OperationalError
        self._settings = settings
        # A server or a network that says nothing would be waited for without end.
        self.defaults: Mapping[str, Any] = {"connect_timeout": CONNECT_TIMEOUT}
        if settings.statement_limit:
            # The database ends the statement first, if it can.
            patience = math.ceil(settings.statement_limit + NETWORK_MARGIN)
            self.defaults = {**self.defaults, "read_timeout": patience, "write_timeout": patience}
        self.timeouts: Mapping[str, Any] = dict.fromkeys(
            ("connect_timeout", "read_timeout", "write_timeout"), CONTROL_TIMEOUT
        )
        self._control = Control(driver, settings)
        self._limit = settings.statement_limit

    def identify(self, connection: Any) -> Identity:
        """See `Database`; costs two round trips for each connection made."""
        identity = self._control.identify(connection)
        if self._limit:
            self._set_limit(connection)
        return identity

    def _set_limit(self, connection: Any) -> None:
        seconds = math.ceil(self._limit)
        if is_mariadb(connection):
            limits = {"max_statement_time": seconds, "idle_transaction_timeout": seconds}
        else:
            limits = {"max_execution_time": 1000 * seconds}
        try:
            execute(connection, "SET SESSION " + ", ".join(_LIMIT.format(*limit) for limit in limits.items()))
        except self._error as error:
            # An old server has no such variables, and so no limit.
            if error.args[:1] != (ER_UNKNOWN_SYSTEM_VARIABLE,):
                raise

    def number(self, identity: Identity) -> int:
        """See `Database`."""
        return identity.thread_id

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """See `Database`."""
        return MySQLSession(connection, comment)

    def keep_control(self) -> None:
        """See `Database`."""
        self._control.keep()

    def stop(self, connection: Any, identity: Identity) -> bool:
        """See `Database`."""
        return self._control.kill(identity, "QUERY")

    def end(self, identity: Identity) -> bool:
        """See `Database`."""
        return not self._control.kill(identity, "CONNECTION")

    def close(self) -> None:
        """See `Database`."""
        self._control.close()

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return bool(error.args) and error.args[0] in STATEMENT_ERRORS

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        return isinstance(error, self._operational) and bool(error.args) and error.args[0] in OUTAGE_ERRORS

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._operational(1317, "Query execution was interrupted: nobody waits for this request any more")
