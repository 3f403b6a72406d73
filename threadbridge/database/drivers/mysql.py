"""MySQL and MariaDB; only the modules whose names begin with ``mysql`` know them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from threadbridge.database.driver import ConnectionSettings, Session, StopFailed, Tag, attributes_of, name_of
from threadbridge.database.drivers.control_connection import ControlConnection, ControlsByServer, execute
from threadbridge.database.drivers.mysql_control import POSITIONAL, ServerControls, verify
from threadbridge.database.drivers.mysql_drivers import DRIVERS
from threadbridge.database.drivers.mysql_errors import (
    ER_NO_SUCH_QUERY,
    ER_NO_SUCH_THREAD,
    ER_UNKNOWN_SYSTEM_VARIABLE,
    is_lost,
    is_outage,
    is_refused_change,
    is_statement_error,
    number_of,
)
from threadbridge.database.drivers.mysql_identity import Identity, Server, Variables, tagged_identity
from threadbridge.database.drivers.mysql_replication import MySQLReplication
from threadbridge.database.drivers.mysql_session import MySQLSession
from threadbridge.database.tags import preceded_by

# Seconds to connect, unless the pool's settings contain a time.
CONNECT_TIMEOUT = 10
# Seconds that the driver waits for the network beyond the statement limit.
NETWORK_MARGIN = 10
# Seconds to connect, and to wait for the answer to a KILL.
CONTROL_TIMEOUT = 3

_IDLE = (
    "idle_transaction_timeout = "
    "IF(@@session.idle_transaction_timeout = 0 AND @@global.idle_transaction_timeout = 0, {}, "
    "@@session.idle_transaction_timeout)"
)
SHOW_LIMIT = "SHOW VARIABLES WHERE Variable_name IN ('max_statement_time', 'max_execution_time')"
_THREAD = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND user = %s"
_STATEMENT = "SELECT query_id FROM information_schema.processlist WHERE info LIKE %s"
_RUNS = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND command <> 'Sleep'"


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
        parameters = {**dict(zip(POSITIONAL, settings.args, strict=False)), **settings.kwargs}
        self.name = name_of(driver, settings, parameters)
        # The others tell no difference between the two.
        self.attributes: Mapping[str, str | int] = attributes_of(
            "mariadb" if driver == "mariadb" else "mysql", parameters
        )
        # Without this, the driver would wait for a silent server or network forever.
        self.defaults: Mapping[str, Any] = {connecting: CONNECT_TIMEOUT}
        if settings.statement_limit:
            # Longer than the limit, so that the database ends the statement first, if it can.
            network_timeout = math.ceil(settings.statement_limit + NETWORK_MARGIN)
            self.defaults = {**self.defaults, **dict.fromkeys(network, network_timeout)}
        self._limit = math.ceil(settings.statement_limit)
        self._variables = Variables(self._driver)
        self._servers = ServerControls(settings, self._driver, self.timeouts, self._variables)

    # New connections.

    def descriptor(self, connection: Any) -> int | None:
        return self._driver.descriptor(connection)

    def identify(self, connection: Any) -> Identity:
        """Costs two round trips for each connection made."""
        number, process, now, version = self._variables.process(connection)
        if self._variables.is_direct(connection, number):
            identity = self._variables.marked(connection, number, process, now)
            self._servers.remember(Server(identity.server, process), identity.address)
            return identity
        obstacle = self._obstacle(version)
        if not obstacle:
            identity = tagged_identity(
                self._driver.number(connection), self._variables.address_behind_proxy(connection), now
            )
            self._servers.remember(identity.address, identity.address)
            return identity
        return Identity(self._driver.number(connection), "", now, "", obstacle=obstacle)

    def _obstacle(self, version: str) -> str:
        """Why statements cannot be stopped behind a proxy; "" if they can."""
        if "mariadb" not in version.lower():
            problem = "only MariaDB can stop a single statement"
        elif not self._driver.hooks:
            problem = f"the driver {self.driver} sends statements without the comments by which they are recognised"
        elif not self._settings.takes_timeouts:
            problem = "the application's connect function cannot be told to connect past it"
        else:
            return ""
        return f"a proxy with connection ids of its own is in between, and {problem}"

    def prepare(self, connection: Any, identity: Identity, tag: Tag | None) -> Session:
        """With a statement limit, costs two round trips for each connection made."""
        without_limit = None
        if self._settings.is_replica:
            self.replication().forbid_changes(connection)
        if self._limit and identity.server and not identity.tag:
            without_limit = self._set_limit(connection)
        elif self._limit:
            self._set_limit_behind_proxy(connection)
        if identity.tag:
            further = tag

            def tag(sql: Any) -> Any:
                return preceded_by(f"/* {identity.tag} */ ", sql if further is None else further(sql))

        return MySQLSession(connection, self._driver, tag, without_limit)

    def replication(self) -> MySQLReplication:
        """See `ReplicatedDatabase`."""
        return MySQLReplication(self._driver)

    def _set_limit(self, connection: Any) -> tuple[bytes, bytes] | None:
        """Make the server limit the time of statements, unless its administrator or the application has set a limit.

        Returns the first word of a ``SELECT``, and its replacement in one without a limit; None if no limit was set.
        """
        name = (
            "max_statement_time"
            if "mariadb" in self._driver.server_version(connection).lower()
            else "max_execution_time"
        )
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

    def _set_limit_behind_proxy(self, connection: Any) -> None:
        """Set only what proxies understand, by statements that do not make them dedicate a thread to the client.

        They would do so for a statement that lifts the limit, so this also holds for rows that are fetched slowly.
        """
        name, value = execute(connection, SHOW_LIMIT) or ("", 0)
        if name and not float(value):
            execute(connection, f"SET SESSION {name} = {self._limit * (1000 if name == 'max_execution_time' else 1)}")

    # Stopping.

    def keep_control(self, server: str) -> None:
        self._servers.keep(server)

    def stop_query(self, connection: Any, identity: Identity, *, waits: bool = False) -> bool:
        if identity.tag:
            return self._stop_statement(identity)
        if not identity.server:
            return False

        def stop(control: ControlConnection) -> bool:
            if not self._has(control, identity):
                return False
            # This query takes the server longer than everything else here.
            runs = waits or execute(control.connection, _RUNS, identity.number) != (0,)
            # In any case, as a statement may arrive just now.
            return self._kill(control, f"QUERY {identity.number}") and runs

        return self._ask(identity, stop)

    def kill(self, identity: Identity) -> bool:
        if identity.tag:
            # The proxy rolls back and closes what it keeps for a client that is gone.
            return not self._stop_statement(identity)
        if not identity.server:
            raise StopFailed(identity.obstacle)
        return self._ask(
            identity,
            lambda control: not (self._has(control, identity) and self._kill(control, f"CONNECTION {identity.number}")),
        )

    @property
    def controls(self) -> ControlsByServer:
        """The control connections. Any thread."""
        return self._servers.controls

    def close(self) -> None:
        self.controls.close()

    def _ask(self, identity: Identity, ask: Callable[[ControlConnection], bool]) -> bool:
        return self._servers.remember(Server(identity.server, identity.process), identity.address).use(ask)

    def _kill(self, control: ControlConnection, what: str) -> bool:
        """Kill the connection or the statement; returns whether the server still had it."""
        try:
            execute(control.connection, f"KILL {what}")
        except self._driver.error as error:
            if number_of(error) not in (ER_NO_SUCH_THREAD, ER_NO_SUCH_QUERY):
                raise
            return False
        return True

    def _has(self, control: ControlConnection, identity: Identity) -> bool:
        """Whether the server still has the connection; raises `StopFailed` if this server cannot know."""
        server, started, user = control.server
        if identity.mark:
            [number] = execute(control.connection, "SELECT IS_USED_LOCK(%s)", identity.mark)
            if number is not None:
                if int(number) != identity.number:
                    raise StopFailed(f"connection {identity.number} is {number} to the server: a proxy is between")
                return True
        if server.name == identity.server and server.process != identity.process and started > identity.made:
            # The server has restarted since.
            return False
        verify(control, Server(identity.server, identity.process))
        # Without the mark, the connection has ended, or the application has released all its locks. While the server
        # process lives, it does not reuse a number.
        [count] = execute(control.connection, _THREAD, identity.number, user)
        return bool(count)

    def _stop_statement(self, identity: Identity) -> bool:
        """Stop the connection's statement wherever the proxy has sent it; returns whether one was running."""

        def stop(control: ControlConnection) -> bool:
            row = execute(control.connection, _STATEMENT, f"/* {identity.tag} */%")
            return bool(row) and self._kill(control, f"QUERY ID {row[0]}")

        failure: StopFailed | None = None
        for address in dict.fromkeys([identity.address, *self._servers.addresses]):
            try:
                if self._servers.remember(address, address).use(stop):
                    return True
            except StopFailed as error:
                if address == identity.address:
                    failure = error
                else:
                    self.controls.forget(address)
        if failure is not None:
            raise failure
        return False

    # Errors.

    def is_statement_error(self, error: BaseException) -> bool:
        return is_statement_error(self._driver, error)

    def is_outage(self, error: BaseException) -> bool:
        # On a replica, a change is always refused: nothing is out of order.
        is_refused = self._settings.is_replica and is_refused_change(error)
        return not is_refused and is_outage(self._driver, error)

    def is_lost(self, error: BaseException) -> bool:
        return is_lost(self._driver, error)

    def cancelled(self) -> Exception:
        return self._driver.interrupted("Query execution was interrupted: the request was cancelled")
