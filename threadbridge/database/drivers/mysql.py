"""MySQL and MariaDB; only the modules whose names begin with ``mysql`` know them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from threadbridge.database.driver import ConnectionSettings, Session
from threadbridge.database.drivers.mysql_control import (
    CONTROL_TIMEOUT,
    ER_UNKNOWN_SYSTEM_VARIABLE,
    Control,
    Identity,
    execute,
    is_mariadb,
    row,
)
from threadbridge.database.drivers.mysql_session import MySQLSession

# Seconds to connect, unless the pool's settings contain a time.
CONNECT_TIMEOUT = 10
# Seconds that the driver waits for the network beyond the statement limit.
NETWORK_MARGIN = 10

# ER_QUERY_INTERRUPTED; MariaDB's ER_STATEMENT_TIMEOUT; MySQL's ER_QUERY_TIMEOUT.
STATEMENT_ERRORS = frozenset({1317, 1969, 3024})
# The client's: CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR, CR_UNKNOWN_HOST, CR_SERVER_GONE_ERROR, CR_SERVER_LOST and its
# extended twin. The server's: ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS, ER_SERVER_SHUTDOWN,
# ER_CONNECTION_KILLED.
OUTAGE_ERRORS = frozenset({2002, 2003, 2005, 2006, 2013, 2055, 1040, 1203, 1053, 1927})
# The server answers and keeps the connection, but cannot do its work. ER_UNKNOWN_COM_ERROR: this Galera node is not in
# the cluster now. ER_ERROR_DURING_COMMIT: the cluster or the disk is gone, and it is not known what was committed.
# ER_USER_LIMIT_REACHED: the account has reached its limit of connections, or of statements per hour.
# ER_OPTION_PREVENTS_STATEMENT is one too if the option makes the server read-only.
UNABLE_ERRORS = frozenset({1047, 1180, 1226})
ER_OPTION_PREVENTS_STATEMENT = 1290

_IDLE = (
    "idle_transaction_timeout = "
    "IF(@@session.idle_transaction_timeout = 0 AND @@global.idle_transaction_timeout = 0, {}, "
    "@@session.idle_transaction_timeout)"
)


class MySQL:
    """Stops queries with ``KILL QUERY`` on a control connection. See `Database`."""

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._operational: type[Exception] = module.OperationalError
        self._settings = settings
        self.driver = driver
        # Without this, the driver would wait for a silent server or network forever.
        self.defaults: Mapping[str, Any] = {"connect_timeout": CONNECT_TIMEOUT}
        if settings.statement_limit:
            # Longer than the limit, so that the database ends the statement first, if it can.
            network_timeout = math.ceil(settings.statement_limit + NETWORK_MARGIN)
            self.defaults = {**self.defaults, "read_timeout": network_timeout, "write_timeout": network_timeout}
        self.timeouts: Mapping[str, Any] = dict.fromkeys(
            ("connect_timeout", "read_timeout", "write_timeout"), CONTROL_TIMEOUT
        )
        self._control = Control(driver, settings)
        self._limit = math.ceil(settings.statement_limit)
        cursors = importlib.import_module(f"{driver}.cursors")
        # Statements of these cursors last for as long as the client takes to download their rows.
        self._unbuffered: type = getattr(cursors, "CursorUseResultMixIn", None) or cursors.SSCursor

    def identify(self, connection: Any) -> Identity:
        """See `Database`; costs one round trip for each connection made."""
        return self._control.identify(connection)

    def number(self, identity: Identity) -> int:
        """See `Database`."""
        return identity.thread_id

    def parts_of(self, identity: Identity) -> list[Any] | None:
        """See `Database`."""
        return list(identity)

    def identity_of(self, parts: list[Any]) -> Identity:
        """See `Database`."""
        return Identity(*parts)

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """See `Database`; with a statement limit, costs two round trips for each connection made."""
        without_limit = self._set_limit(connection) if self._limit else None
        return MySQLSession(connection, comment, self._unbuffered, without_limit)

    def _set_limit(self, connection: Any) -> tuple[bytes, bytes] | None:
        """Make the server limit the time of statements.

        Returns the first word of a ``SELECT``, and its replacement in one without a limit. Returns None if the server
        has no such limit, or its administrator or the application has set one already, which is not changed.
        """
        name = "max_statement_time" if is_mariadb(connection) else "max_execution_time"
        try:
            if row(connection, f"SELECT @@session.{name}, @@global.{name}") != (0, 0):
                return None
            if name == "max_statement_time":
                # The second setting ends the transaction, and frees the locks, of a frontend that hangs in between.
                execute(connection, f"SET SESSION {name} = {self._limit}, {_IDLE.format(self._limit)}")
                return b"select", b"SET STATEMENT max_statement_time=0 FOR select"
            execute(connection, f"SET SESSION {name} = {1000 * self._limit}")
        except self._error as error:
            if error.args[:1] != (ER_UNKNOWN_SYSTEM_VARIABLE,):
                raise
            return None
        return b"select", b"select /*+ MAX_EXECUTION_TIME(0) */"

    def keep_control(self) -> None:
        """See `Database`."""
        self._control.check()

    def stop_query(self, connection: Any, identity: Identity, *, waits: bool = False) -> bool:
        """See `Database`."""
        return self._control.stop_query(identity, waits)

    def kill(self, identity: Identity) -> bool:
        """See `Database`."""
        return self._control.kill(identity)

    def close(self) -> None:
        """See `Database`. Any thread."""
        self._control.close()

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return bool(error.args) and error.args[0] in STATEMENT_ERRORS

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        return self.is_lost(error) or (isinstance(error, self._operational) and _is_unable(error))

    def is_lost(self, error: BaseException) -> bool:
        """See `Database`."""
        return isinstance(error, self._operational) and bool(error.args) and error.args[0] in OUTAGE_ERRORS

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._operational(1317, "Query execution was interrupted: the request was cancelled")


def _is_unable(error: Exception) -> bool:
    number, text = (*error.args, None, None)[:2]
    if number == ER_OPTION_PREVENTS_STATEMENT:
        # MySQL has --super-read-only, --read-only and --innodb-read-only; MariaDB spells some of them differently.
        return "read-only" in str(text).replace("_", "-").lower()
    return number in UNABLE_ERRORS
