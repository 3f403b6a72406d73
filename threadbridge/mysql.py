"""MySQL and MariaDB: the only module that knows them."""

from __future__ import annotations

import contextlib
import importlib
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from threadbridge.database import ConnectionSettings, Session, StopFailed
from threadbridge.mysql_session import MySQLSession

# Seconds to connect, and to wait for the answer to a KILL.
CONTROL_TIMEOUT = 3
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
ER_NO_SUCH_THREAD = 1094

_NAME = "CONCAT_WS('|', @@hostname, @@port, @@server_id, @@pid_file)"
_MARK = f"SELECT GET_LOCK(%s, 0), {_NAME}"
_MARKED = "SELECT IS_USED_LOCK(%s)"
_SERVER = f"SELECT {_NAME}, UNIX_TIMESTAMP()"
_UPTIME = "SHOW STATUS LIKE 'Uptime'"


class Server(NamedTuple):
    """A server process. Another one in its place gives the same thread ids to other connections."""

    name: str
    # By its clock, in seconds; a second may begin between two statements.
    started: int

    def is_before(self, other: Server) -> bool:
        """Whether the other has taken this one's place."""
        return self.name == other.name and self.started < other.started - 1


class Identity(NamedTuple):
    """A connection's thread id, and which server has given it.

    The mark is a lock of a name that nobody else has, which the connection holds as long as it lives: only the server
    process that it leads to can say whose it is. Where the server refuses such locks, as some clusters do, it is "" and
    the second in which the server was started has to do.
    """

    thread_id: int
    server: Server
    mark: str


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
        # The control connection is the guard's thread's, kept for the next time.
        self._control: Any = None
        self._control_server = Server("", 0)

    def identify(self, connection: Any) -> Identity:
        """See `Database`; costs one round trip for each connection made."""
        mark = f"threadbridge-{secrets.token_hex(16)}"
        with contextlib.suppress(self._error):
            is_held, name = _row(connection, _MARK, mark)
            if is_held:
                return Identity(connection.thread_id(), Server(str(name), 0), mark)
        return Identity(connection.thread_id(), _server_of(connection), "")

    def number(self, identity: Identity) -> int:
        """See `Database`."""
        return identity.thread_id

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """See `Database`."""
        return MySQLSession(connection, comment)

    def stop(self, connection: Any, identity: Identity) -> None:
        """See `Database`."""
        if self._control is not None:
            try:
                self._kill(identity)
            except (self._error, StopFailed):
                # It may have been idle for too long, or lead to a server that is out of service; a new one may not.
                self._drop_control()
            else:
                return
        try:
            self._connect()
            self._kill(identity)
        except self._error as error:
            self._drop_control()
            raise StopFailed(str(error)) from error
        except StopFailed:
            self._drop_control()
            raise

    def _connect(self) -> None:
        settings = self._settings
        timeouts = self.timeouts if settings.takes_timeouts else {}
        self._control = settings.connect(*settings.args, **{**settings.kwargs, **timeouts})
        self._control_server = _server_of(self._control)

    def _kill(self, identity: Identity) -> None:
        number = self._find(identity)
        if number is None:
            # The query has ended with its connection.
            return
        cursor = self._control.cursor()
        try:
            cursor.execute("KILL QUERY %s", (number,))
        except self._operational as error:
            if error.args[:1] != (ER_NO_SUCH_THREAD,):
                raise
        finally:
            cursor.close()

    def _find(self, identity: Identity) -> int | None:
        """The connection's thread id, on the control connection's server; None if it is not there any more."""
        server = self._control_server
        if server.name != identity.server.name or (not identity.mark and server.is_before(identity.server)):
            raise StopFailed(f"the control connection came to {server}, not to {identity.server}")
        if identity.mark:
            [number] = _row(self._control, _MARKED, identity.mark)
            return None if number is None else int(number)
        return None if identity.server.is_before(server) else identity.thread_id

    def _drop_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return bool(error.args) and error.args[0] in STATEMENT_ERRORS

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        return isinstance(error, self._operational) and bool(error.args) and error.args[0] in OUTAGE_ERRORS

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._operational(1317, "Query execution was interrupted: nobody waits for this request any more")


def _server_of(connection: Any) -> Server:
    name, now = _row(connection, _SERVER)
    _, uptime = _row(connection, _UPTIME)
    return Server(str(name), int(now) - int(uptime))


def _row(connection: Any, sql: str, *parameters: str) -> tuple[Any, ...]:
    cursor = connection.cursor()
    try:
        cursor.execute(sql, parameters or None)
        row = cursor.fetchone()
    finally:
        cursor.close()
    # A cursor class of the application's may give dictionaries.
    return tuple(row.values()) if isinstance(row, dict) else tuple(row)
