"""PostgreSQL: this module and `threadbridge.database.drivers.postgresql_session` are the only ones that know it."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, Session, StopFailed
from threadbridge.database.drivers.control_connection import ControlConnection, ControlConnections
from threadbridge.database.drivers.postgresql_session import ACTIVE, IDLE, PostgreSQLSession

# Seconds to connect, for connections whose settings say nothing about it.
CONNECT_TIMEOUT = 10
# Seconds to wait for the server's answer to a cancel request.
CONTROL_TIMEOUT = 3

_IDENTITY = (
    "SELECT pid, extract(epoch FROM backend_start)::text, extract(epoch FROM pg_postmaster_start_time())::text "
    "FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)
# What the server's operator, the user's settings or the application have chosen stays.
_LIMIT = (
    "SELECT count(set_config(name, %s, false)) FROM pg_settings "
    "WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout') AND source = 'default'"
)
_TELL = (
    "SELECT extract(epoch FROM pg_postmaster_start_time())::text, "
    "(SELECT {}(pid) FROM pg_stat_activity WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s)"
)

# In a connection string, be it a URI or not.
_TIMEOUT_OR_SERVICE = re.compile(r"\b(connect_timeout|service)\s*=").search

QUERY_CANCELED = "57014"
TOO_MANY_CONNECTIONS = "53300"


class Identity(NamedTuple):
    """A connection's process in the server.

    :param started: when that process was started, in seconds by the server's clock, as a text; "" where a proxy is
        between, behind which the process may be another one's next.
    :param server_started: when the server was started.
    """

    pid: int
    started: str
    server_started: str


class PostgreSQL:
    """Stops queries by the driver's own ``cancel``, which asks the server by a connection of its own.

    psycopg2's holds the interpreter's lock while it waits for the network: there, and to end connections, functions of
    the server's are called on a connection that is kept for that.
    """

    timeouts: Mapping[str, Any] = {"connect_timeout": CONTROL_TIMEOUT}

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._operational: type[Exception] = module.OperationalError
        self._canceled: type[Exception] = importlib.import_module(f"{driver}.errors").QueryCanceled
        self._settings = settings
        self.driver = driver
        # A server or a network that says nothing would be waited for for minutes, or without end.
        self.defaults: Mapping[str, Any] = {} if _has_timeout(settings) else {"connect_timeout": CONNECT_TIMEOUT}
        self._control = ControlConnections(self._connect, self._error)
        # psycopg 3.2's has a timeout; older ones wait as long as the network does.
        self._cancels_safely = hasattr(getattr(module, "Connection", None), "cancel_safe")

    def identify(self, connection: Any) -> Identity:
        """See `Database`; costs a transaction for each connection made."""
        number: int = connection.info.backend_pid
        limit = math.ceil(1000 * self._settings.statement_limit)
        was_idle = connection.info.transaction_status == IDLE
        pid, started, server_started = _row(connection, _IDENTITY)
        if pid == number and limit:
            _row(connection, _LIMIT, str(limit))
        if was_idle and not connection.autocommit:
            # Settings that are not committed are lost with the next rollback.
            connection.commit()
        return Identity(number, str(started) if pid == number else "", str(server_started))

    def number(self, identity: Identity) -> int:
        """See `Database`."""
        return identity.pid

    def parts_of(self, identity: Identity) -> list[Any] | None:
        """See `Database`."""
        # Behind a proxy nobody can find it.
        return list(identity) if identity.started else None

    def identity_of(self, parts: list[Any]) -> Identity:
        """See `Database`."""
        return Identity(*parts)

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """See `Database`; statements that are objects of the driver's are left as they are."""
        if comment is not None:
            _tag(connection, comment)
        return PostgreSQLSession(connection)

    def keep_control(self) -> None:
        """See `Database`; psycopg 3 needs none but to end connections."""
        if not self._cancels_safely:
            self._control.use(lambda control: _row(control.connection, "SELECT 1"))

    def stop(self, connection: Any, identity: Identity, *, waits: bool = False) -> bool:
        """See `Database`."""
        if connection.closed:
            return False
        # What the driver knows; it waits for nobody.
        runs = bool(connection.info.transaction_status == ACTIVE)
        if not self._cancels_safely:
            return self._tell("pg_cancel_backend", identity) and runs
        try:
            connection.cancel_safe(timeout=CONTROL_TIMEOUT)
        except self._error as error:
            raise StopFailed(str(error)) from error
        return runs

    def end(self, identity: Identity) -> bool:
        """See `Database`."""
        return not self._tell("pg_terminate_backend", identity)

    def close(self) -> None:
        """See `Database`."""
        self._control.close()

    def _tell(self, function: str, identity: Identity) -> bool:
        """Call a function of the server's for the connection; whether the server still has it. Raises `StopFailed`."""
        if not identity.started:
            raise StopFailed(f"connection {identity.pid} goes through a proxy, which has numbers of its own")

        def tell(control: ControlConnection) -> bool:
            sql = _TELL.format(function)
            server_started, found = _row(control.connection, sql, identity.pid, identity.started)
            if str(server_started) != identity.server_started and float(server_started) < float(identity.started):
                raise StopFailed(f"the control connection came to another server than that of {identity.pid}")
            return found is not None

        return self._control.use(tell)

    def _connect(self) -> ControlConnection:
        settings = self._settings
        timeouts: dict[str, Any] = {}
        if settings.takes_timeouts:
            timeouts = {"connect_timeout": CONTROL_TIMEOUT, "tcp_user_timeout": 1000 * CONTROL_TIMEOUT}
        control = ControlConnection(settings.connect(*settings.args, **{**settings.kwargs, **timeouts}))
        control.connection.autocommit = True
        return control

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return _sqlstate(error) == QUERY_CANCELED

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        # Class 08: connection exception; 57P0x: the server is shutting down or starting up; none: no answer at all.
        state = _sqlstate(error)
        return isinstance(error, self._operational) and (
            state is None or state[:2] == "08" or state[:4] == "57P0" or state == TOO_MANY_CONNECTIONS
        )

    def is_lost(self, error: BaseException) -> bool:
        """See `Database`; here it is the same."""
        return self.is_outage(error)

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._canceled("canceling statement: the request was cancelled")


def _has_timeout(settings: ConnectionSettings) -> bool:
    """Whether somebody has chosen how long connecting may take, or may have in a file of services."""
    kwargs = settings.kwargs
    if "PGCONNECT_TIMEOUT" in os.environ or "PGSERVICE" in os.environ or "service" in kwargs:
        return True
    # psycopg2's name for a connection string, and psycopg's.
    texts = (*settings.args[:1], kwargs.get("dsn"), kwargs.get("conninfo"))
    return any(isinstance(text, str) and _TIMEOUT_OR_SERVICE(text) for text in texts)


def _tag(connection: Any, comment: Callable[[], str]) -> None:
    # psycopg2's connections begin without one.
    kind: Any = connection.cursor_factory or importlib.import_module("psycopg2.extensions").cursor

    class TaggingCursor(kind):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().execute(_tagged(query, comment), *args, **kwargs)

        def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().executemany(_tagged(query, comment), *args, **kwargs)

    connection.cursor_factory = TaggingCursor


def _tagged(query: Any, comment: Callable[[], str]) -> Any:
    if isinstance(query, str):
        return comment() + query
    return comment().encode() + query if isinstance(query, bytes) else query


def _row(connection: Any, sql: str, *parameters: object) -> tuple[Any, ...]:
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(sql, parameters or None)
        row = cursor.fetchone()
    # A cursor class of the application's may give dictionaries.
    return tuple(row.values()) if isinstance(row, dict) else tuple(row)


def _sqlstate(error: BaseException) -> str | None:
    state: str | None = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state
