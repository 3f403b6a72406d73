"""PostgreSQL; only the modules whose names begin with ``postgresql`` know it."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, Session, StopFailed, Tag, attributes_of, name_of
from threadbridge.database.drivers.control_connection import (
    ControlConnection,
    ControlConnections,
    ControlsByServer,
    execute,
)
from threadbridge.database.drivers.postgresql_replication import PostgreSQLReplication
from threadbridge.database.drivers.postgresql_session import ACTIVE, IDLE, PostgreSQLSession

# Seconds to connect, unless the pool's settings contain a time.
CONNECT_TIMEOUT = 10
# Seconds to wait for the server's answer to a cancel request.
CONTROL_TIMEOUT = 3

_IDENTITY = (
    "SELECT pid, extract(epoch FROM backend_start)::text, extract(epoch FROM pg_postmaster_start_time())::text, "
    "host(inet_server_addr()) || ':' || inet_server_port() FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)
# Limits that the administrator, the user's settings or the application have set are not changed.
_LIMIT = (
    "SELECT count(set_config(name, %s, false)) FROM pg_settings "
    "WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout') AND source = 'default'"
)
_SIGNAL = (
    "SELECT host(inet_server_addr()) || ':' || inet_server_port(), "
    "extract(epoch FROM pg_postmaster_start_time())::text, "
    "(SELECT {}(pid) FROM pg_stat_activity WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s)"
)

# In a connection string, whether URI or not.
_TIMEOUT_OR_SERVICE = re.compile(r"\b(connect_timeout|service)\s*=").search

_OBSTACLE = "a proxy such as PgBouncer is in between, which only psycopg 3.2 and later can ask to stop them"

TOO_MANY_CONNECTIONS = "53300"


class Identity(NamedTuple):
    """A connection's process in the server. See `driver.Identity`. Times are seconds by the server's clock, as text."""

    number: int
    # When the process started; "" behind a proxy, which may use the process for another client next.
    started: str
    server_started: str
    obstacle: str = ""
    # The server's own address, whatever is in between: HOST:PORT; "" for a Unix socket.
    address: str = ""

    @property
    def server(self) -> str:
        return f"{self.address} {self.server_started}"

    @property
    def is_findable(self) -> bool:
        return bool(self.started)


class PostgreSQL:
    """Stops queries by the driver's own ``cancel``, which makes a connection of its own. See `Database`.

    Through a TCP proxy to several servers, that may come to another one. psycopg2's ``cancel`` holds the interpreter's
    lock while it waits for the network. So there, and to kill connections, functions of the server are called on a
    control connection to it.
    """

    identity: type[Any] = Identity
    timeouts: Mapping[str, Any] = {"connect_timeout": CONTROL_TIMEOUT}

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._operational: type[Exception] = module.OperationalError
        self._canceled: type[Exception] = importlib.import_module(f"{driver}.errors").QueryCanceled
        self._settings = settings
        self.driver = driver
        parameters = _parameters(driver, settings)
        self.name = name_of(driver, settings, parameters)
        self.attributes: Mapping[str, str | int] = attributes_of("postgresql", parameters)
        # Without this, the driver would wait for a silent server or network for minutes, or forever.
        self.defaults: Mapping[str, Any] = {} if _has_timeout(settings) else {"connect_timeout": CONNECT_TIMEOUT}
        self.controls = ControlsByServer(self._error)
        # psycopg has it since 3.2; before that, ``cancel`` has no timeout.
        self._cancels_safely = hasattr(getattr(module, "Connection", None), "cancel_safe")

    def descriptor(self, connection: Any) -> int:
        return int(connection.fileno())

    def identify(self, connection: Any) -> Identity:
        """Costs a transaction for each connection made."""
        number: int = connection.info.backend_pid
        limit = math.ceil(1000 * self._settings.statement_limit)
        was_idle = connection.info.transaction_status == IDLE
        pid, started, server_started, address = execute(connection, _IDENTITY)
        if pid == number and limit:
            execute(connection, _LIMIT, str(limit))
        if was_idle and not connection.autocommit:
            # Otherwise the next rollback would undo the settings.
            connection.commit()
        obstacle = "" if pid == number or self._cancels_safely else _OBSTACLE
        known = str(started) if pid == number else ""
        identity = Identity(number, known, str(server_started), obstacle, address or "")
        if identity.started and not self._cancels(connection, identity):
            self._controls_of(identity)
        return identity

    def _cancels(self, connection: Any, identity: Identity) -> bool:
        """Whether the driver's ``cancel`` is used: it exists, and reaches the same server or a proxy that knows it."""
        if not self._cancels_safely:
            return False
        info = connection.info
        return not (identity.started and identity.address) or identity.address == f"{info.hostaddr}:{info.port}"

    def prepare(self, connection: Any, identity: Identity, tag: Tag | None) -> Session:
        """Statements that are the driver's objects get no comment."""
        if tag is not None:
            _tag(connection, tag)
        return PostgreSQLSession(connection)

    def replication(self) -> PostgreSQLReplication:
        """See `ReplicatedDatabase`."""
        return PostgreSQLReplication()

    def keep_control(self, server: str) -> None:
        # Where the driver's ``cancel`` is used, it is needed only to kill connections.
        self.controls.keep(server, lambda control: execute(control.connection, "SELECT 1"))

    def stop_query(self, connection: Any, identity: Identity, *, waits: bool = False) -> bool:
        if connection.closed:
            return False
        # The driver's own state; this does not wait.
        runs = bool(connection.info.transaction_status == ACTIVE)
        if not self._cancels(connection, identity):
            return bool(identity.started) and self._signal("pg_cancel_backend", identity) and runs
        try:
            connection.cancel_safe(timeout=CONTROL_TIMEOUT)
        except self._error as error:
            raise StopFailed(str(error)) from error
        return runs

    def kill(self, identity: Identity) -> bool:
        return not self._signal("pg_terminate_backend", identity)

    def close(self) -> None:
        self.controls.close()

    def _signal(self, function: str, identity: Identity) -> bool:
        """Call a function of the server for the connection; returns whether it still exists. Raises `StopFailed`."""
        if not identity.started:
            raise StopFailed(f"connection {identity.number} goes through a proxy, which has numbers of its own")

        def signal(control: ControlConnection) -> bool:
            sql = _SIGNAL.format(function)
            address, server_started, found = execute(control.connection, sql, identity.number, identity.started)
            has_restarted = (address or "") == identity.address and float(server_started) >= float(identity.started)
            if str(server_started) != identity.server_started and not has_restarted:
                raise StopFailed(f"the control connection came to another server than that of {identity.number}")
            return found is not None

        return self._controls_of(identity).use(signal)

    def _controls_of(self, identity: Identity) -> ControlConnections:
        straight = partial(self._connect_to, identity.address)
        return self.controls.remember(
            identity.server, lambda: [self._connect, *([straight] if identity.address else [])]
        )

    def _connect_to(self, address: str) -> ControlConnection:
        """Connect past a TCP proxy. Raises `StopFailed`."""
        if not self._settings.takes_timeouts:
            raise StopFailed(f"the application's connect function cannot be told to connect to {address}")
        host, _, port = address.rpartition(":")
        try:
            # The host name is still what the server's certificate must prove.
            return self._connect({"hostaddr": host, "port": int(port)})
        except self._error as error:
            raise StopFailed(f"cannot connect to {address}, the server's own address: {error}") from error

    def _connect(self, parameters: Mapping[str, Any] = MappingProxyType({})) -> ControlConnection:
        timeouts = {**self.timeouts, "tcp_user_timeout": 1000 * CONTROL_TIMEOUT}
        control = ControlConnection(self._settings.connect_within({**timeouts, **parameters}), self.descriptor)
        control.connection.autocommit = True
        return control

    def is_statement_error(self, error: BaseException) -> bool:
        # psycopg2 gives no SQLSTATE to errors that it has not raised itself.
        return isinstance(error, self._canceled)

    def is_outage(self, error: BaseException) -> bool:
        # Class 08: connection exception; 57P0x: the server is shutting down or starting up; none: no answer at all.
        state = _sqlstate(error)
        return (isinstance(error, self._operational) and not self.is_statement_error(error)) and (
            state is None or state[:2] == "08" or state[:4] == "57P0" or state == TOO_MANY_CONNECTIONS
        )

    # Each outage loses the connection.
    is_lost = is_outage

    def cancelled(self) -> Exception:
        return self._canceled("canceling statement: the request was cancelled")


def _parameters(driver: str, settings: ConnectionSettings) -> dict[str, Any]:
    """The parameters for connecting, those in a connection string included if it can be read."""
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        if driver == "psycopg":
            parse = importlib.import_module("psycopg.conninfo").conninfo_to_dict
        else:
            parse = importlib.import_module("psycopg2.extensions").parse_dsn
        for text in _connection_strings(settings):
            found.update(parse(text))
    return {**found, **settings.kwargs}


def _connection_strings(settings: ConnectionSettings) -> list[str]:
    # psycopg2 calls the connection string dsn, psycopg conninfo.
    texts = (*settings.args[:1], settings.kwargs.get("dsn"), settings.kwargs.get("conninfo"))
    return [text for text in texts if isinstance(text, str)]


def _has_timeout(settings: ConnectionSettings) -> bool:
    """Whether a time for connecting is set, or may be set in a service file."""
    if "PGCONNECT_TIMEOUT" in os.environ or "PGSERVICE" in os.environ or "service" in settings.kwargs:
        return True
    return any(_TIMEOUT_OR_SERVICE(text) for text in _connection_strings(settings))


def _tag(connection: Any, tag: Tag) -> None:
    # With psycopg2, it is None at first.
    kind: Any = connection.cursor_factory or importlib.import_module("psycopg2.extensions").cursor

    class TaggingCursor(kind):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().execute(tag(query), *args, **kwargs)

        def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().executemany(tag(query), *args, **kwargs)

    connection.cursor_factory = TaggingCursor


def _sqlstate(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
