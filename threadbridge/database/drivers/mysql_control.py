"""Identifies a connection in its MySQL or MariaDB server, and stops its query or kills it from another connection."""

from __future__ import annotations

import contextlib
import importlib
import secrets
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.control_connection import ControlConnection, ControlConnections

# Seconds to connect, and to wait for the answer to a KILL.
CONTROL_TIMEOUT = 3
ER_NO_SUCH_THREAD = 1094
ER_UNKNOWN_SYSTEM_VARIABLE = 1193

_NAME = "CONCAT_WS('|', @@hostname, @@port, @@server_id, @@pid_file{})"
# These differ between servers that are copies of each other. MariaDB has them since 10.6.16 and 10.11.6.
_NAME_PARTS = {"mariadb": ", @@server_uid, @@wsrep_node_address", "mysql": ", @@server_uuid"}
_MARK = "SELECT GET_LOCK(%s, 0), {}, UNIX_TIMESTAMP()"
_MARKED = "SELECT IS_USED_LOCK(%s)"
_SERVER = "SELECT {}, UNIX_TIMESTAMP()"
_UPTIME = "SHOW STATUS LIKE 'Uptime'"
_THREAD = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND user = %s"
_RUNS = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND command <> 'Sleep'"
_USER = "SELECT SUBSTRING_INDEX(USER(), '@', 1)"
# Longer than any control connection is idle.
_NO_TIMEOUT = "SET SESSION wait_timeout = 2147483"


class Identity(NamedTuple):
    """A connection's thread id, and the server that assigned it.

    :param server: the server's name.
    :param made: when the connection was identified, in seconds by the server's clock.
    :param mark: the name of a user lock (``GET_LOCK``), unique to the connection, which holds the lock as long as it
        lives, unless the application releases all its locks. Only the connection's own server process knows who holds
        it. "" if the server refuses such locks, as some clusters do.
    """

    thread_id: int
    server: str
    made: int
    mark: str


class ControlServer(NamedTuple):
    """The server process to which a control connection leads.

    :param started: when the process started, in seconds by its clock; may be off by one, as it is computed from two
        statements.
    :param user: the user as whom the control connection is logged in.
    """

    name: str
    started: int
    user: str


class Control:
    """Identifies connections, and stops their queries or kills them from a control connection. Any thread."""

    def __init__(self, driver: str, settings: ConnectionSettings) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._settings = settings
        self._connections = ControlConnections(self._connect, self._error)
        self._has_all_variables = True

    def identify(self, connection: Any) -> Identity:
        """See `Database`; costs one round trip."""
        mark = f"threadbridge-{secrets.token_hex(16)}"
        with contextlib.suppress(self._error):
            is_held, server, now = self._named_row(connection, _MARK, mark)
            if is_held:
                return Identity(connection.thread_id(), str(server), int(now), mark)
        server, now = self._named_row(connection, _SERVER)
        return Identity(connection.thread_id(), str(server), int(now), "")

    def _named_row(self, connection: Any, sql: str, *parameters: str) -> tuple[Any, ...]:
        """The row of a query for the server's name, made of as many variables as the server has."""
        if self._has_all_variables:
            more = "mariadb" if is_mariadb(connection) else "mysql"
            try:
                return row(connection, sql.format(_NAME.format(_NAME_PARTS[more])), *parameters)
            except self._error as error:
                if error.args[:1] != (ER_UNKNOWN_SYSTEM_VARIABLE,):
                    raise
                self._has_all_variables = False
        return row(connection, sql.format(_NAME.format("")), *parameters)

    def check(self) -> None:
        """Make or check the control connection. Raises `StopFailed`."""
        self._connections.use(lambda control: execute(control.connection, "DO 0"))

    def stop_query(self, identity: Identity, waits: bool) -> bool:
        """Send ``KILL QUERY`` for the connection; returns whether it was running a statement. Raises `StopFailed`.

        :param waits: see `Database.stop_query`. If false, the server is asked, which takes it longer than all the rest.
        """

        def stop(control: ControlConnection) -> bool:
            if not self._has(control, identity):
                return False
            runs = waits or row(control.connection, _RUNS, identity.thread_id) != (0,)
            # In any case, as a statement may arrive just now.
            return self._kill(control, "QUERY", identity) and runs

        return self._connections.use(stop)

    def kill(self, identity: Identity) -> bool:
        """Send ``KILL`` for the connection; returns whether it had already ended. Raises `StopFailed`."""
        return self._connections.use(
            lambda control: not (self._has(control, identity) and self._kill(control, "CONNECTION", identity))
        )

    def close(self) -> None:
        """Close the control connection, and keep none from now on. Any thread."""
        self._connections.close()

    def _connect(self) -> ControlConnection:
        settings = self._settings
        names = ("connect_timeout", "read_timeout", "write_timeout") if settings.takes_timeouts else ()
        made = settings.connect(*settings.args, **{**settings.kwargs, **dict.fromkeys(names, CONTROL_TIMEOUT)})
        control = ControlConnection(made)
        try:
            execute(made, _NO_TIMEOUT)
            name, now = self._named_row(made, _SERVER)
            _, uptime = row(made, _UPTIME)
            [user] = row(made, _USER)
        except BaseException:
            control.close()
            raise
        control.server = ControlServer(str(name), int(now) - int(uptime), str(user))
        return control

    def _kill(self, control: ControlConnection, what: str, identity: Identity) -> bool:
        """Kill the query or the connection; returns whether the server still had the connection."""
        try:
            execute(control.connection, f"KILL {what} {identity.thread_id}")
        except self._error as error:
            if error.args[:1] != (ER_NO_SUCH_THREAD,):
                raise
            return False
        return True

    def _has(self, control: ControlConnection, identity: Identity) -> bool:
        """Whether the server still has the connection; raises `StopFailed` if this server cannot know."""
        server: ControlServer = control.server
        if server.name != identity.server:
            raise StopFailed(f"the control connection came to {server.name}, not to {identity.server}")
        if identity.mark:
            [number] = row(control.connection, _MARKED, identity.mark)
            if number is not None:
                if int(number) != identity.thread_id:
                    # A proxy in between assigns its own numbers, which mean nothing to the server.
                    raise StopFailed(f"connection {identity.thread_id} is {number} to the server: a proxy is between")
                return True
        # Without the mark, the connection has ended, or the application has released all its locks. While the server
        # process lives, it does not reuse a number.
        [count] = row(control.connection, _THREAD, identity.thread_id, server.user)
        if not count or server.started > identity.made:
            return False
        if server.started >= identity.made - 1:
            raise StopFailed(f"{server.name} may have restarted just after connection {identity.thread_id} was made")
        return True


def is_mariadb(connection: Any) -> bool:
    """Whether the server is a MariaDB, by the version in its greeting."""
    return "mariadb" in str(connection.get_server_info()).lower()


def execute(connection: Any, sql: str) -> None:
    """Execute a statement without a result."""
    cursor = connection.cursor()
    try:
        cursor.execute(sql)
    finally:
        cursor.close()


def row(connection: Any, sql: str, *parameters: object) -> tuple[Any, ...]:
    """Execute a query and return its first row."""
    cursor = connection.cursor()
    try:
        cursor.execute(sql, parameters or None)
        found = cursor.fetchone()
    finally:
        cursor.close()
    # The application's cursor class may give dictionaries.
    return tuple(found.values()) if isinstance(found, dict) else tuple(found)
