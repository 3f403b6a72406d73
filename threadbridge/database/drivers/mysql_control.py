"""Finding a connection in the MySQL or MariaDB server that it leads to, and ending its query or itself from there."""

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
# What tells servers apart that are copies of each other: MariaDB has these variables from 10.6.16 and 10.11.6 on.
_NAME_PARTS = {"mariadb": ", @@server_uid, @@wsrep_node_address", "mysql": ", @@server_uuid"}
_MARK = "SELECT GET_LOCK(%s, 0), {}, UNIX_TIMESTAMP()"
_MARKED = "SELECT IS_USED_LOCK(%s)"
_SERVER = "SELECT {}, UNIX_TIMESTAMP()"
_UPTIME = "SHOW STATUS LIKE 'Uptime'"
_THREAD = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND user = %s"
_RUNS = "SELECT COUNT(*) FROM information_schema.processlist WHERE id = %s AND command <> 'Sleep'"
_USER = "SELECT SUBSTRING_INDEX(USER(), '@', 1)"
# Longer than any control connection is idle.
_KEEP = "SET SESSION wait_timeout = 2147483"


class Identity(NamedTuple):
    """A connection's thread id, and which server has given it.

    The mark is a lock of a name that nobody else has, which the connection holds as long as it lives, unless the
    application has it let go of all its locks: only the server process that it leads to can say whose it is. Where the
    server refuses such locks, as some clusters do, it is "".

    :param server: the server's name.
    :param made: when this was asked, in seconds by the server's clock.
    """

    thread_id: int
    server: str
    made: int
    mark: str


class Server(NamedTuple):
    """The server process that a control connection leads to, and as whom."""

    name: str
    # By its clock, in seconds; a second may begin between two statements.
    started: int
    user: str


class Control:
    """Identifies connections, and ends their queries or themselves by a connection of its own. Any thread."""

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
        """The row of a query that asks for the server's name too, by as many variables as it has."""
        if self._has_all_variables:
            more = "mariadb" if is_mariadb(connection) else "mysql"
            try:
                return row(connection, sql.format(_NAME.format(_NAME_PARTS[more])), *parameters)
            except self._error as error:
                if error.args[:1] != (ER_UNKNOWN_SYSTEM_VARIABLE,):
                    raise
                self._has_all_variables = False
        return row(connection, sql.format(_NAME.format("")), *parameters)

    def keep(self) -> None:
        """See to it that there is a connection, so that none has to be made when the server has none left.

        Raises `StopFailed`.
        """
        self._connections.use(lambda control: execute(control.connection, "DO 0"))

    def stop(self, identity: Identity, waits: bool) -> bool:
        """Send ``KILL QUERY`` for the connection; whether a statement ran on it then. Raises `StopFailed`.

        :param waits: see `Database.stop`. To ask the server takes it longer than all the rest.
        """

        def stop(control: ControlConnection) -> bool:
            if not self._has(control, identity):
                return False
            runs = waits or row(control.connection, _RUNS, identity.thread_id) != (0,)
            # In any case: a statement may come just now.
            return self._kill(control, "QUERY", identity) and runs

        return self._connections.use(stop)

    def end(self, identity: Identity) -> bool:
        """Send ``KILL`` for the connection; whether the server had it no more. Raises `StopFailed`."""
        return self._connections.use(
            lambda control: not (self._has(control, identity) and self._kill(control, "CONNECTION", identity))
        )

    def close(self) -> None:
        """Keep no connection any more."""
        self._connections.close()

    def _connect(self) -> ControlConnection:
        settings = self._settings
        names = ("connect_timeout", "read_timeout", "write_timeout") if settings.takes_timeouts else ()
        made = settings.connect(*settings.args, **{**settings.kwargs, **dict.fromkeys(names, CONTROL_TIMEOUT)})
        control = ControlConnection(made)
        try:
            execute(made, _KEEP)
            name, now = self._named_row(made, _SERVER)
            _, uptime = row(made, _UPTIME)
            [user] = row(made, _USER)
        except BaseException:
            control.close()
            raise
        control.about = Server(str(name), int(now) - int(uptime), str(user))
        return control

    def _kill(self, control: ControlConnection, what: str, identity: Identity) -> bool:
        """Whether the server still had the connection."""
        try:
            execute(control.connection, f"KILL {what} {identity.thread_id}")
        except self._error as error:
            if error.args[:1] != (ER_NO_SUCH_THREAD,):
                raise
            return False
        return True

    def _has(self, control: ControlConnection, identity: Identity) -> bool:
        """Whether the connection is still there; raises `StopFailed` where this server cannot know."""
        server: Server = control.about
        if server.name != identity.server:
            raise StopFailed(f"the control connection came to {server.name}, not to {identity.server}")
        if identity.mark:
            [number] = row(control.connection, _MARKED, identity.mark)
            if number is not None:
                if int(number) != identity.thread_id:
                    # What is between here and the server has numbers of its own, and what they mean is not known.
                    raise StopFailed(f"connection {identity.thread_id} is {number} to the server: a proxy is between")
                return True
        # No mark: the connection has ended, or the application has let go of all its locks. A number belongs to one
        # connection as long as the server process lives.
        [count] = row(control.connection, _THREAD, identity.thread_id, server.user)
        if not count or server.started > identity.made:
            return False
        if server.started >= identity.made - 1:
            raise StopFailed(f"{server.name} may have restarted just after connection {identity.thread_id} was made")
        return True


def is_mariadb(connection: Any) -> bool:
    """Whether the server is a MariaDB, by what it said when it was connected to."""
    return "mariadb" in str(connection.get_server_info()).lower()


def execute(connection: Any, sql: str) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(sql)
    finally:
        cursor.close()


def row(connection: Any, sql: str, *parameters: object) -> tuple[Any, ...]:
    cursor = connection.cursor()
    try:
        cursor.execute(sql, parameters or None)
        found = cursor.fetchone()
    finally:
        cursor.close()
    # A cursor class of the application's may give dictionaries.
    return tuple(found.values()) if isinstance(found, dict) else tuple(found)
