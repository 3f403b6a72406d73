"""The connection to MySQL: settings from the environment, a pool of connections, queries on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor


class SettingsError(Exception):
    """An environment variable has a value that cannot be used; the message names the variable."""


class Result(NamedTuple):
    """The result of a query: the names of its columns and all of its rows."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


class DBConnection:
    """Runs queries on a pool of connections, each made when it is first needed.

    The environment variable ``MYAPPLICATION_POOL_SIZE`` sets how many connections there may be at the same
    time, 10 by default; a query beyond that fails with ``TooManyConnections``. ``connection_settings`` documents
    the other variables. Raises SettingsError for an invalid variable.
    """

    def __init__(self) -> None:
        self.pool = PooledDB(
            MySQLdb,
            maxconnections=number_setting("MYAPPLICATION_POOL_SIZE", default=10, highest=1000),
            **connection_settings(),
        )

    def query(self, sql: str, params: Sequence[object] = ()) -> Result:
        """Run one statement with ``params`` in place of its ``%s`` and return the whole result."""
        with closing(self.pool.dedicated_connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql, params)
            return Result(tuple(column[0] for column in cursor.description), cursor.fetchall())

    def stream(self, sql: str, params: Sequence[object] = ()) -> Generator[tuple[Any, ...], None, None]:
        """Run one statement; yield the names of its columns, then row after row as the database delivers them.

        The generator holds its connection from the first step until it is exhausted or closed.
        """
        with closing(self.pool.dedicated_connection()) as connection:
            cursor = connection.cursor(SSCursor)
            cursor.execute(sql, params)
            try:
                yield tuple(column[0] for column in cursor.description)
                # Not "yield from": that would close the cursor together with this generator.
                while (row := cursor.fetchone()) is not None:
                    yield row
            except BaseException:
                # Closing the cursor would first fetch all remaining rows. Closing the connection does not, and the pool
                # makes a new one when it is next needed.
                cursor.connection.close()
                raise
            cursor.close()


def connection_settings() -> dict[str, Any]:
    """The arguments for ``MySQLdb.connect``, from the environment. An empty variable counts as not set.

    - ``MYSQL_UNIX_SOCKET``: the path of the server's socket; if set, host and port are ignored
    - ``MYSQL_HOST`` (default localhost) and ``MYSQL_PORT`` (default 3306)
    - ``MYSQL_USER`` and ``MYSQL_DATABASE`` (default for both: myapplication)
    - ``MYSQL_PASSWORD``, or ``MYSQL_PASSWORD_FILE``: a file with the password in its first line

    Raises SettingsError for an invalid variable.
    """
    settings: dict[str, Any] = {
        "user": os.environ.get("MYSQL_USER") or "myapplication",
        "database": os.environ.get("MYSQL_DATABASE") or "myapplication",
        "password": password(),
        "charset": "utf8mb4",
        "connect_timeout": 10,
    }
    if socket := os.environ.get("MYSQL_UNIX_SOCKET"):
        settings["unix_socket"] = socket
    else:
        settings["host"] = os.environ.get("MYSQL_HOST") or "localhost"
        settings["port"] = number_setting("MYSQL_PORT", default=3306, highest=65535)
    return settings


def password() -> str:
    given = os.environ.get("MYSQL_PASSWORD", "")
    path = os.environ.get("MYSQL_PASSWORD_FILE")
    if not path:
        return given
    if given:
        raise SettingsError("MYSQL_PASSWORD and MYSQL_PASSWORD_FILE are both set; set only one of them.")
    try:
        return Path(path).read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"MYSQL_PASSWORD_FILE cannot be read: {error}") from error


def number_setting(name: str, *, default: int, highest: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= highest):
        raise SettingsError(f"{name} is {text!r}; it must be a whole number from 1 to {highest}.")
    return int(text)


# The person who starts the application can act on one line, which a traceback would hide.
try:
    db = DBConnection()
except SettingsError as error:
    print(f"myapplication: {error}", file=sys.stderr)
    sys.exit(2)
