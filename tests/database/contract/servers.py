"""The kinds of database over which the stacks of the contract are, each with a witness of what happens there."""

from __future__ import annotations

import abc
import sqlite3
from pathlib import Path
from typing import Any

import MySQLdb
import psycopg

from tests.support.databases import connect_settings

ACCOUNTS = 20


class Server(abc.ABC):
    """A kind of database, with tables ``accounts (id, amount)`` and ``ledger (id, source, target)``.

    `connect` gives a connection of the witness's, in autocommit.
    """

    # A statement that computes for minutes.
    compute: str
    # The driver's for a parameter.
    placeholder = "%s"

    @abc.abstractmethod
    def connect(self) -> Any: ...

    def __init__(self) -> None:
        self.witness = self.connect()

    def close(self) -> None:
        self.witness.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        cursor = self.witness.cursor()
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []

    def make_tables(self) -> None:
        for statement in (
            "DROP TABLE IF EXISTS accounts",
            "DROP TABLE IF EXISTS ledger",
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)",
            "CREATE TABLE ledger (id INTEGER PRIMARY KEY, source INTEGER NOT NULL, target INTEGER NOT NULL)",
            *[f"INSERT INTO accounts VALUES ({number}, 1000)" for number in range(1, ACCOUNTS + 1)],  # noqa: S608
        ):
            self.rows(statement)

    @property
    def is_consistent(self) -> bool:
        """Whether what the ledger says and the accounts have is the same: no transfer was made in part."""
        amounts = dict.fromkeys(range(1, ACCOUNTS + 1), 1000)
        for source, target in self.rows("SELECT source, target FROM ledger"):
            amounts[source] -= 1
            amounts[target] += 1
        return dict(self.rows("SELECT id, amount FROM accounts")) == amounts

    @property
    @abc.abstractmethod
    def running(self) -> int:
        """How many statements run at this moment, but for the witness's own."""


class MariaDB(Server):
    compute = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"

    def __init__(self, mariadb: dict[str, str]) -> None:
        self.settings = connect_settings(mariadb)
        super().__init__()

    def connect(self) -> Any:
        return MySQLdb.connect(autocommit=True, **self.settings)

    @property
    def running(self) -> int:
        return int(
            self.rows(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info IS NOT NULL "
                "AND command <> 'Sleep'"
            )[0][0]
        )


class PostgreSQL(Server):
    compute = "SELECT count(*) FROM generate_series(1, 2000000000)"

    def __init__(self, postgresql: dict[str, str]) -> None:
        self.settings = postgresql
        super().__init__()

    def connect(self) -> Any:
        return psycopg.connect(
            host=self.settings["PGHOST"], user=self.settings["PGUSER"], dbname="postgres", autocommit=True
        )

    @property
    def running(self) -> int:
        return int(
            self.rows(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'"
            )[0][0]
        )


class SQLite(Server):
    """A file. There is no server to ask: what reads or writes a table has a lock on the file."""

    compute = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000000000) "
        "SELECT COUNT(*) FROM numbers WHERE n > (SELECT COUNT(*) FROM accounts)"
    )
    placeholder = "?"

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        super().__init__()

    def connect(self) -> Any:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        # Nothing needs to outlive the computer.
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    @property
    def running(self) -> int:
        """See `Server`; 1 if there are any, as locks cannot be counted."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            assert error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            return 1
        finally:
            connection.close()
        return 0
