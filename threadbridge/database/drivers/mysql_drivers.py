"""Where the MySQL drivers differ; everything else about MySQL is the same for all of them.

Their private members are used only here and in `connecting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Flags in the server's answers (``SERVER_STATUS_…``).
AUTOCOMMIT, NO_BACKSLASH_ESCAPES = 2, 512

# ER_QUERY_INTERRUPTED, and its SQLSTATE.
INTERRUPTED = 1317
_SQLSTATE = "70100"


@dataclass(frozen=True)
class MySQLDriver:
    """A driver of the MySQL family. Its functions take one of the driver's connections, and never use the network."""

    # The driver's base class of errors.
    error: type[Exception]
    # Makes the error that the driver raises for a stopped statement.
    interrupted: Callable[[str], Exception]
    # The socket's file descriptor; None if the driver does not reveal it.
    descriptor: Callable[[Any], int | None]
    # The connection's number in the server's process list.
    number: Callable[[Any], int]
    # The server's version, as it was in its greeting.
    server_version: Callable[[Any], str]
    # Whether the session is in autocommit mode, by the server's latest answer.
    autocommits: Callable[[Any], bool]
    # Whether a backslash is an escape character in strings.
    escapes: Callable[[Any], bool]
    # Whether the statements of a cursor last for as long as the client takes to download their rows.
    is_unbuffered: Callable[[object], bool]
    # Methods of the connection through which it sends all statements, their parameters filled in: sql, …. If there are
    # none, only the texts given to cursors are seen, and nothing can be put before a statement.
    hooks: Sequence[str] = ()
    connect_timeout: str = "connect_timeout"
    # Whether ``connect`` takes ``read_timeout`` and ``write_timeout``.
    has_network_timeouts: bool = True
    # Sends a rollback without waiting for the answer, and returns a function that reads it.
    send_rollback: Callable[[Any], Callable[[], object]] | None = None
    # Whether an error without a number of its own means that the connection is lost.
    is_lost: Callable[[BaseException], bool] = lambda error: False


def mysqlclient() -> MySQLDriver:
    import MySQLdb
    from MySQLdb.connections import Connection
    from MySQLdb.cursors import CursorUseResultMixIn

    def send_rollback(connection: Any) -> Callable[[], object]:
        connection.send_query(b"ROLLBACK")
        return connection.read_query_result  # type: ignore[no-any-return]

    return MySQLDriver(
        error=MySQLdb.Error,
        interrupted=lambda text: MySQLdb.OperationalError(INTERRUPTED, text),
        descriptor=Connection.fileno,
        number=Connection.thread_id,
        server_version=Connection.get_server_info,
        autocommits=Connection.get_autocommit,
        # The driver obeys the server's sql_mode.
        escapes=lambda connection: connection.escape_string("\\") not in ("\\", b"\\"),
        is_unbuffered=lambda cursor: isinstance(cursor, CursorUseResultMixIn),
        hooks=("query",),
        send_rollback=send_rollback,
    )


def pymysql() -> MySQLDriver:
    import pymysql
    from pymysql.cursors import SSCursor

    return MySQLDriver(
        error=pymysql.Error,
        interrupted=lambda text: pymysql.OperationalError(INTERRUPTED, text),
        descriptor=lambda connection: connection._sock.fileno(),
        number=lambda connection: int(connection.thread_id()),
        server_version=lambda connection: str(connection.get_server_info()),
        autocommits=lambda connection: bool(connection.server_status & AUTOCOMMIT),
        escapes=lambda connection: not connection.server_status & NO_BACKSLASH_ESCAPES,
        is_unbuffered=lambda cursor: isinstance(cursor, SSCursor),
        hooks=("query",),
        # What it raises on a connection that it has closed after an error.
        is_lost=lambda error: isinstance(error, pymysql.InterfaceError) and error.args[:1] == (0,),
    )


def mysql_connector() -> MySQLDriver:
    """Written in Python (``use_pure``) or in C. The latter reveals no descriptor."""
    from mysql.connector import errors
    from mysql.connector.connection import MySQLConnection
    from mysql.connector.constants import DEFAULT_CONFIGURATION
    from mysql.connector.cursor import MySQLCursorBuffered

    buffered: tuple[type, ...] = (MySQLCursorBuffered,)
    try:
        from mysql.connector.cursor_cext import CMySQLCursorBuffered
    except ImportError:
        pass
    else:
        buffered = (MySQLCursorBuffered, CMySQLCursorBuffered)
    _keep_status(MySQLConnection)
    names = ("ReadTimeoutError", "WriteTimeoutError", "ConnectionTimeoutError")
    timeouts = tuple(getattr(errors, name) for name in names if hasattr(errors, name))

    def is_lost(error: BaseException) -> bool:
        is_closed = isinstance(error, errors.OperationalError) and "Connection not available" in str(error)
        return is_closed or isinstance(error, timeouts)

    def descriptor(connection: Any) -> int | None:
        # The connection written in C has no such attribute.
        network = getattr(connection, "_socket", None)
        return None if network is None or network.sock is None else int(network.sock.fileno())

    return MySQLDriver(
        error=errors.Error,
        interrupted=lambda text: errors.get_mysql_exception(INTERRUPTED, text, _SQLSTATE),
        descriptor=descriptor,
        number=lambda connection: int(connection.connection_id),
        server_version=lambda connection: str(connection.server_info),
        autocommits=lambda connection: bool(connection._server_status & AUTOCOMMIT),
        escapes=lambda connection: not connection._server_status & NO_BACKSLASH_ESCAPES,
        is_unbuffered=lambda cursor: not isinstance(cursor, buffered),
        # In C, these are one method.
        hooks=("cmd_query", "_execute_query"),
        connect_timeout="connection_timeout",
        has_network_timeouts="read_timeout" in DEFAULT_CONFIGURATION,
        is_lost=is_lost,
    )


def _keep_status(kind: Any) -> None:
    """Make connections written in Python keep the flags of the server's latest answer, as those written in C do."""
    if hasattr(kind, "_server_status"):
        return
    handle = kind._handle_server_status

    def handle_and_keep(connection: Any, flags: int) -> None:
        connection._server_status = flags
        handle(connection, flags)

    kind._server_status = 0
    kind._handle_server_status = handle_and_keep


def mariadb() -> MySQLDriver:
    import mariadb

    def interrupted(text: str) -> Exception:
        error: Any = mariadb.OperationalError(text)
        error.errno, error.errmsg, error.sqlstate = INTERRUPTED, text, _SQLSTATE
        return error  # type: ignore[no-any-return]

    return MySQLDriver(
        error=mariadb.Error,
        interrupted=interrupted,
        descriptor=lambda connection: int(connection._get_socket()),
        number=lambda connection: int(connection.connection_id),
        server_version=lambda connection: str(connection.server_info),
        autocommits=lambda connection: bool(connection.autocommit),
        escapes=lambda connection: not connection.server_status & NO_BACKSLASH_ESCAPES,
        is_unbuffered=lambda cursor: not getattr(cursor, "buffered", True),
    )


# By the top-level module of the driver.
DRIVERS: dict[str, Callable[[], MySQLDriver]] = {
    "MySQLdb": mysqlclient,
    "pymysql": pymysql,
    "mysql": mysql_connector,
    "mariadb": mariadb,
}
