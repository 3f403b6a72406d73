"""MySQL and MariaDB; only the modules whose names begin with ``mysql`` know them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, Session, StopFailed, name_of
from threadbridge.database.drivers.control_connection import ControlConnection, ControlConnections, execute
from threadbridge.database.drivers.mysql_drivers import DRIVERS
from threadbridge.database.drivers.mysql_errors import (
    ER_NO_SUCH_THREAD,
    ER_UNKNOWN_SYSTEM_VARIABLE,
    is_lost,
    is_outage,
    is_statement_error,
    number_of,
)
from threadbridge.database.drivers.mysql_session import MySQLSession

# Seconds to connect, unless the pool's settings contain a time.
CONNECT_TIMEOUT = 10
# Seconds that the driver waits for the network beyond the statement limit.
NETWORK_MARGIN = 10
# Seconds to connect, and to wait for the answer to a KILL.
CONTROL_TIMEOUT = 3

_POSITIONAL = ("host", "user", "password", "database", "port", "unix_socket")

_IDLE = (
    "idle_transaction_timeout = "
    "IF(@@session.idle_transaction_timeout = 0 AND @@global.idle_transaction_timeout = 0, {}, "
    "@@session.idle_transaction_timeout)"
)
_NAME = "CONCAT_WS('|', @@hostname, @@port, @@server_id, @@pid_file{})"
# These differ between servers that are copies of each other. MariaDB has them since 10.6.16 and 10.11.6.
_NAME_PARTS = {True: ", @@server_uid, @@wsrep_node_address", False: ", @@server_uuid"}
_MARK = "SELECT GET_LOCK(%s, 0), {}, UNIX_TIMESTAMP()"
_SERVER = "SELECT {}, UNIX_TIMESTAMP()"
_THREAD = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND user = %s"
_RUNS = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND command <> 'Sleep'"


class Identity(NamedTuple):
    """A connection's thread id, and the server that assigned it. See `driver.Identity`."""

    number: int
    server: str
    # When the connection was identified, in seconds by the server's clock.
    made: int
    # The name of a user lock (``GET_LOCK``) that the connection holds as long as it lives, unless the application
    # releases all its locks. Only the connection's own server process knows who holds it. "" if the server refuses such
    # locks, as some clusters do.
    mark: str

    @property
    def is_findable(self) -> bool:
        return True


class MySQL:
    """Stops queries with ``KILL QUERY`` on a control connection. See `Database`."""

    identity: type[Any] = Identity

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        self.driver = driver
        self._driver = DRIVERS[driver]()
        self._settings = settings
        connecting = self._driver.connect_timeout
        network = ("read_timeout", "write_timeout") if self._driver.has_network_timeouts else ()
        self.timeouts: Mapping[str, Any] = dict.fromkeys((connecting, *network), CONTROL_TIMEOUT)
        # The drivers' positional parameters; their own names for them differ.
        self.name = name_of(
            driver, settings, {**dict(zip(_POSITIONAL, settings.args, strict=False)), **settings.kwargs}
        )
        # Without this, the driver would wait for a silent server or network forever.
        self.defaults: Mapping[str, Any] = {connecting: CONNECT_TIMEOUT}
        if settings.statement_limit:
            # Longer than the limit, so that the database ends the statement first, if it can.
            network_timeout = math.ceil(settings.statement_limit + NETWORK_MARGIN)
            self.defaults = {**self.defaults, **dict.fromkeys(network, network_timeout)}
        self._limit = math.ceil(settings.statement_limit)
        self._control = ControlConnections(self._connect, self._driver.error)
        self._has_all_variables = True

    # New connections.

    def descriptor(self, connection: Any) -> int | None:
        return self._driver.descriptor(connection)

    def identify(self, connection: Any) -> Identity:
        """Costs one round trip for each connection made."""
        mark = f"threadbridge-{secrets.token_hex(16)}"
        try:
            is_held, server, now = self._named_row(connection, _MARK, mark)
        except self._driver.error:
            is_held, (server, now) = False, self._named_row(connection, _SERVER)
        return Identity(self._driver.number(connection), str(server), int(now), mark if is_held else "")

    def _named_row(self, connection: Any, sql: str, *parameters: str) -> tuple[Any, ...]:
        """The row of a query for the server's name, made of as many variables as the server has."""
        if self._has_all_variables:
            try:
                return execute(
                    connection, sql.format(_NAME.format(_NAME_PARTS[self._is_mariadb(connection)])), *parameters
                )
            except self._driver.error as error:
                if number_of(error) != ER_UNKNOWN_SYSTEM_VARIABLE:
                    raise
                self._has_all_variables = False
        return execute(connection, sql.format(_NAME.format("")), *parameters)

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """With a statement limit, costs two round trips for each connection made."""
        without_limit = self._set_limit(connection) if self._limit else None
        return MySQLSession(connection, self._driver, comment, without_limit)

    def _set_limit(self, connection: Any) -> tuple[bytes, bytes] | None:
        """Make the server limit the time of statements, unless its administrator or the application has set a limit.

        Returns the first word of a ``SELECT``, and its replacement in one without a limit; None if no limit was set.
        """
        name = "max_statement_time" if self._is_mariadb(connection) else "max_execution_time"
        try:
            if execute(connection, f"SELECT @@session.{name}, @@global.{name}") != (0, 0):
                return None
            if name == "max_statement_time":
                # The second setting ends the transaction, and frees the locks, of a frontend that hangs in between.
                execute(connection, f"SET SESSION {name} = {self._limit}, {_IDLE.format(self._limit)}")
                return b"select", b"SET STATEMENT max_statement_time=0 FOR select"
            execute(connection, f"SET SESSION {name} = {1000 * self._limit}")
        except self._driver.error as error:
            if number_of(error) != ER_UNKNOWN_SYSTEM_VARIABLE:
                raise
            return None
        return b"select", b"select /*+ MAX_EXECUTION_TIME(0) */"

    # Stopping.

    def keep_control(self) -> None:
        self._control.use(lambda control: execute(control.connection, "DO 0"))

    def stop_query(self, connection: Any, identity: Identity, *, waits: bool = False) -> bool:
        def stop(control: ControlConnection) -> bool:
            if not self._has(control, identity):
                return False
            # This query takes the server longer than everything else here.
            runs = waits or execute(control.connection, _RUNS, identity.number) != (0,)
            # In any case, as a statement may arrive just now.
            return self._kill(control, "QUERY", identity) and runs

        return self._control.use(stop)

    def kill(self, identity: Identity) -> bool:
        return self._control.use(
            lambda control: not (self._has(control, identity) and self._kill(control, "CONNECTION", identity))
        )

    def close(self) -> None:
        self._control.close()

    def _connect(self) -> ControlConnection:
        control = ControlConnection(self._settings.connect_within(self.timeouts), self._driver.descriptor)
        try:
            # Longer than it is ever idle.
            execute(control.connection, "SET SESSION wait_timeout = 2147483")
            name, now = self._named_row(control.connection, _SERVER)
            _, uptime = execute(control.connection, "SHOW STATUS LIKE 'Uptime'")
            [user] = execute(control.connection, "SELECT SUBSTRING_INDEX(USER(), '@', 1)")
        except BaseException:
            control.close()
            raise
        # When it started, by its clock, may be off by one, as two statements give it.
        control.server = str(name), int(now) - int(uptime), str(user)
        return control

    def _kill(self, control: ControlConnection, what: str, identity: Identity) -> bool:
        """Kill the query or the connection; returns whether the server still had the connection."""
        try:
            execute(control.connection, f"KILL {what} {identity.number}")
        except self._driver.error as error:
            if number_of(error) != ER_NO_SUCH_THREAD:
                raise
            return False
        return True

    def _has(self, control: ControlConnection, identity: Identity) -> bool:
        """Whether the server still has the connection; raises `StopFailed` if this server cannot know."""
        name, started, user = control.server
        if name != identity.server:
            raise StopFailed(f"the control connection came to {name}, not to {identity.server}")
        if identity.mark:
            [number] = execute(control.connection, "SELECT IS_USED_LOCK(%s)", identity.mark)
            if number is not None:
                if int(number) != identity.number:
                    # A proxy in between assigns its own numbers, which mean nothing to the server.
                    raise StopFailed(f"connection {identity.number} is {number} to the server: a proxy is between")
                return True
        # Without the mark, the connection has ended, or the application has released all its locks. While the server
        # process lives, it does not reuse a number.
        [count] = execute(control.connection, _THREAD, identity.number, user)
        if not count or started > identity.made:
            return False
        if started >= identity.made - 1:
            raise StopFailed(f"{name} may have restarted just after connection {identity.number} was made")
        return True

    # Errors.

    def is_statement_error(self, error: BaseException) -> bool:
        return is_statement_error(self._driver, error)

    def is_outage(self, error: BaseException) -> bool:
        return is_outage(self._driver, error)

    def is_lost(self, error: BaseException) -> bool:
        return is_lost(self._driver, error)

    def cancelled(self) -> Exception:
        return self._driver.interrupted("Query execution was interrupted: the request was cancelled")

    def _is_mariadb(self, connection: Any) -> bool:
        """Whether the server is a MariaDB, by the version in its greeting."""
        return "mariadb" in self._driver.server_version(connection).lower()
