"""A driver and a database for the tests that are the same for all drivers."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mariadb as mariadb_connector
import mysql.connector
import psycopg
import psycopg2
import pymysql
from dbutils.pooled_db import PooledDB

from tests.support import databases, postgresql
from tests.support.inprocess import wait_until
from threadbridge.database.pools.dbutils import DBUtilsGuard


class Stack:
    """A driver, its database with an empty table ``notes``, and pools of connections to it."""

    # A statement that changes the session for those after it, and a query that would compute for hours.
    change = "SET @left = 1"
    compute = "SELECT COUNT(MD5(CONCAT(a.seq, b.seq))) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"
    # Where the connection's number in the server is asked for; "" if it has none.
    number = "SELECT CONNECTION_ID()"
    autocommit = "SET autocommit = 1"
    # A statement that is refused.
    wrong = "SELECT no_such_column FROM notes"
    # Whether statements that the application sends without the pool's cursors are seen.
    sees_all = True
    has_descriptor = True

    def __init__(self, creator: Any, settings: dict[str, Any]) -> None:
        self.creator = creator
        self.settings = settings
        self._made: list[tuple[Any, DBUtilsGuard]] = []

    def pool(self, creator: Any = None, **parameters: Any) -> tuple[Any, DBUtilsGuard]:
        """A pool of one connection, and its guard."""
        pool = PooledDB(creator or self.creator, **{"maxconnections": 1, **self.settings, **parameters})
        self._made.append((pool, DBUtilsGuard(pool)))
        return self._made[-1]

    def close(self) -> None:
        for pool, guard in self._made:
            guard.close()
            pool.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What the statement gives on a connection besides the pool's."""
        raise NotImplementedError

    @property
    def notes(self) -> list[str]:
        return [note for (note,) in self.rows("SELECT note FROM notes ORDER BY note")]

    @property
    def is_computing(self) -> bool:
        """Whether `compute` runs in the database."""
        raise NotImplementedError

    def run_compute(self, connection: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(self.compute)
            cursor.fetchall()

    def end(self, number: int) -> None:
        """End a connection in the server, as an administrator does."""
        raise NotImplementedError


class MySQLStack(Stack):
    def __init__(self, witness: databases.Witness, creator: Any, **settings: Any) -> None:
        super().__init__(creator, {**witness.settings, **settings})
        self._witness = witness
        self.sees_all = creator is not mariadb_connector
        self.has_descriptor = settings.get("use_pure") is not False

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return list(self._witness.rows(sql))

    @property
    def is_computing(self) -> bool:
        return self.compute in self._witness.running

    def end(self, number: int) -> None:
        self._witness.rows(f"KILL {number}")
        wait_until(lambda: number not in self._witness.connections, "it has ended")


class PostgreSQLStack(Stack):
    change = "SET work_mem = '8MB'"
    compute = "SELECT count(*) FROM generate_series(1, 1000000000000)"
    number = "SELECT pg_backend_pid()"
    autocommit = ""

    def __init__(self, witness: postgresql.Witness, creator: Any) -> None:
        super().__init__(creator, {"dbname": "postgres"})
        self._witness = witness

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        cursor = self._witness.connection.execute(sql)
        return cursor.fetchall() if cursor.description else []

    @property
    def is_computing(self) -> bool:
        return self.compute in self._witness.running

    def end(self, number: int) -> None:
        self.rows(f"SELECT pg_terminate_backend({number}, 10000)")


class SQLiteStack(Stack):
    change = "CREATE TEMPORARY TABLE made (a INT)"
    compute = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    number = ""
    autocommit = ""
    sees_all = has_descriptor = False

    def __init__(self, path: Path) -> None:
        super().__init__(sqlite3, {"database": str(path)})
        self._witness = sqlite3.connect(path, isolation_level=None)
        self._witness.execute("CREATE TABLE notes (note TEXT)")
        self._progress = threading.Event()

    def close(self) -> None:
        super().close()
        self._witness.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._witness.execute(sql).fetchall()

    @property
    def is_computing(self) -> bool:
        self._progress.clear()
        return self._progress.wait(0.1)

    def run_compute(self, connection: Any) -> None:
        connection._con._con.set_progress_handler(self._progress.set, 10_000)
        super().run_compute(connection)


def mysql_stacks(witness: databases.Witness) -> dict[str, Callable[[], Stack]]:
    import MySQLdb

    return {
        "mysqlclient": lambda: MySQLStack(witness, MySQLdb),
        "PyMySQL": lambda: MySQLStack(witness, pymysql),
        "mysql-connector-pure": lambda: MySQLStack(witness, mysql.connector, use_pure=True),
        "mysql-connector-C": lambda: MySQLStack(witness, mysql.connector, use_pure=False),
        "mariadb": lambda: MySQLStack(witness, mariadb_connector),
    }


MYSQL = ("mysqlclient", "PyMySQL", "mysql-connector-pure", "mysql-connector-C", "mariadb")
POSTGRESQL = {"psycopg": psycopg, "psycopg2": psycopg2}
ALL = (*MYSQL, *POSTGRESQL, "sqlite3")


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Any:
    """These variables are set meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
