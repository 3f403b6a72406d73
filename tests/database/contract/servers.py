"""The kinds of database over which the stacks of the contract are, each with a witness of what happens there."""

from __future__ import annotations

import abc
import copy
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import MySQLdb
import psycopg

from tests.faults.line import FaultyLine
from tests.support.databases import connect_settings

ACCOUNTS = 20
# The name of PostgreSQL's socket.
_SOCKET = ".s.PGSQL.5432"
_OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"


class Server(abc.ABC):
    """A kind of database, with tables ``accounts (id, amount)`` and ``ledger (id, source, target)``.

    `connect` gives a connection of the witness's, in autocommit.
    """

    # A statement that computes for minutes.
    compute: str
    # One that computes for about a millisecond.
    brief: str
    # The driver's for a parameter.
    placeholder = "%s"
    # Whether there are sessions, which may be lost.
    has_sessions = True

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
    def running(self) -> int:
        """How many statements run at this moment, but for the witness's own."""
        return len(self.texts)

    @property
    def texts(self) -> list[str]:
        """Their texts."""
        raise NotImplementedError

    def computes(self) -> bool:
        """Whether one of them is `compute`, and not what guards and pools themselves send."""
        return any(text.endswith(self.compute) for text in self.texts)

    def end_sessions(self) -> None:
        """End all but the witness's."""
        raise NotImplementedError

    @property
    def socket(self) -> str:
        """The path of the server's."""
        raise NotImplementedError

    @contextmanager
    def behind_line(self) -> Iterator[tuple[Self, FaultyLine]]:
        """The same server, but reached over a line that fails if it is told to."""
        with closing(FaultyLine(self.socket)) as line:
            other = copy.copy(self)
            other.lead_to(line.path)
            yield other, line

    def lead_to(self, path: str) -> None:
        """Let stacks use this socket."""
        raise NotImplementedError


class MariaDB(Server):
    compute = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"
    brief = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_100 AS a, seq_1_to_100 AS b"

    def __init__(self, mariadb: dict[str, str]) -> None:
        self.settings = connect_settings(mariadb)
        super().__init__()

    def connect(self) -> Any:
        return MySQLdb.connect(autocommit=True, **self.settings)

    @property
    def socket(self) -> str:
        return str(self.settings["unix_socket"])

    def lead_to(self, path: str) -> None:
        self.settings = {**self.settings, "unix_socket": path}

    @property
    def texts(self) -> list[str]:
        sql = (
            "SELECT info FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info IS NOT NULL "
            "AND command <> 'Sleep'"
        )
        return [text for (text,) in self.rows(sql)]

    def end_sessions(self) -> None:
        mine = "id <> CONNECTION_ID() AND user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
        for (number,) in self.rows(f"SELECT id FROM information_schema.processlist WHERE {mine}"):  # noqa: S608
            # It may have ended by itself.
            with suppress(MySQLdb.OperationalError):
                self.rows(f"KILL {number}")


class PostgreSQL(Server):
    compute = "SELECT count(*) FROM generate_series(1, 2000000000)"
    brief = "SELECT count(*) FROM generate_series(1, 10000)"

    def __init__(self, postgresql: dict[str, str]) -> None:
        self.settings = postgresql
        super().__init__()

    def connect(self) -> Any:
        return psycopg.connect(
            host=self.settings["PGHOST"], user=self.settings["PGUSER"], dbname="postgres", autocommit=True
        )

    @property
    def socket(self) -> str:
        return f"{self.settings['PGHOST']}/{_SOCKET}"

    def lead_to(self, path: str) -> None:
        # libpq is given the directory.
        directory = Path(path).parent
        (directory / _SOCKET).symlink_to(path)
        self.settings = {**self.settings, "PGHOST": str(directory)}

    @property
    def texts(self) -> list[str]:
        return [text for (text,) in self.rows(f"SELECT query {_OTHERS} AND state = 'active'")]

    def end_sessions(self) -> None:
        self.rows(f"SELECT pg_terminate_backend(pid) {_OTHERS}")


class SQLite(Server):
    """A file. There is no server to ask: what reads or writes a table has a lock on the file."""

    compute = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000000000) "
        "SELECT COUNT(*) FROM numbers WHERE n > (SELECT COUNT(*) FROM accounts)"
    )
    brief = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 5000) "
        "SELECT COUNT(*) FROM numbers"
    )
    placeholder = "?"
    has_sessions = False

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
