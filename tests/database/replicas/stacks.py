"""An application in front of a primary and a replica, with different pools."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import sqlalchemy
from dbutils.pooled_db import PooledDB
from mysql.connector.pooling import MySQLConnectionPool

import threadbridge

_numbers = itertools.count(1)
INSERT, COUNT = "INSERT INTO orders VALUES (0)", "SELECT COUNT(*), @@server_id FROM orders WHERE id = 0"
# What holds a connection until the test, which has the lock, gives it back, or until it is stopped.
HOLD = "SELECT IS_USED_LOCK('report') IS NOT NULL, GET_LOCK('report', 60)"


class Stack:
    """The application; derived classes know how to execute a statement and commit.

    Below /reports/ and elsewhere: …/server gives the id of the server that was asked; …/orders/N the number of orders
    with this id, which POST adds; …/broken/N adds it and fails; …/hold waits for a lock; …/change and …/temporary
    change something.
    """

    primary: Any
    replica: Any

    def __init__(self, primary: dict[str, Any], replica: dict[str, Any]) -> None:
        raise NotImplementedError

    def execute(self, *statements: str) -> Sequence[Sequence[Any]]:
        """Execute them in a transaction; the rows of the last."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def application(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        what, last = f"/{environ['PATH_INFO']}".split("/")[-2:]
        changes = environ["REQUEST_METHOD"] == "POST"
        statements = {
            "server": ["SELECT @@server_id"],
            "hold": [HOLD, "SELECT @@server_id"],
            "change": ["SELECT 1", "INSERT INTO orders VALUES (4711)"],
            "temporary": [
                "CREATE TEMPORARY TABLE report (server INT)",
                "INSERT INTO report VALUES (@@server_id)",
                "SELECT server FROM report",
            ],
            "page": [],
        }
        if changes and what in ("orders", "broken"):
            self.execute(INSERT.replace("0", last))
            if what == "broken":
                raise RuntimeError("after the commit")
            found: Sequence[Sequence[Any]] = [["added"]]
        elif what == "orders":
            found = self.execute(COUNT.replace("0", last))
        else:
            found = self.execute(*statements[last]) if statements[last] else [[""]]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [" ".join(map(str, found[0] if found else ["none"])).encode()]


def _execute(lent: Any, statements: Sequence[str]) -> Sequence[Sequence[Any]]:
    """The rows of the last statement; mysql-connector wants those of the others fetched, too."""
    rows: Sequence[Sequence[Any]] = ()
    with closing(lent) as connection, closing(connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else ()
        connection.commit()
    return rows


class DBUtils(Stack):
    """The application knows only the pool of the primary."""

    def __init__(self, primary: dict[str, Any], replica: dict[str, Any]) -> None:
        self.primary, self.replica = (
            PooledDB(MySQLdb, maxconnections=4, blocking=True, **settings) for settings in (primary, replica)
        )

    def execute(self, *statements: str) -> Sequence[Sequence[Any]]:
        return _execute(self.primary.connection(), statements)

    def close(self) -> None:
        self.primary.close()
        self.replica.close()


class SQLAlchemy(Stack):
    """The application knows only the engine of the primary."""

    def __init__(self, primary: dict[str, Any], replica: dict[str, Any]) -> None:
        self.primary, self.replica = (
            sqlalchemy.create_engine(
                "mysql+mysqldb://", connect_args=settings, pool_size=4, max_overflow=0, pool_pre_ping=True
            )
            for settings in (primary, replica)
        )

    def execute(self, *statements: str) -> Sequence[Sequence[Any]]:
        with self.primary.begin() as connection:
            results = [connection.exec_driver_sql(statement) for statement in statements]
            return results[-1].fetchall() if results[-1].returns_rows else ()

    def close(self) -> None:
        self.primary.dispose()
        self.replica.dispose()


class MySQLConnector(Stack):
    """The application knows only the pool of the primary."""

    def __init__(self, primary: dict[str, Any], replica: dict[str, Any]) -> None:
        number = next(_numbers)
        self.primary, self.replica = (
            MySQLConnectionPool(pool_name=f"{name}-{number}", pool_size=4, **settings)
            for name, settings in (("primary", primary), ("replica", replica))
        )

    def execute(self, *statements: str) -> Sequence[Sequence[Any]]:
        return _execute(self.primary.get_connection(), statements)

    def close(self) -> None:
        for pool in (self.primary, self.replica):
            pool._remove_connections()


class Django(Stack):
    """The application asks where to read, as a router of Django's does."""

    def __init__(self, primary: dict[str, Any], replica: dict[str, Any]) -> None:
        from django.db import connections

        from tests.support import django_databases

        number = next(_numbers)
        self._aliases = [f"primary{number}", f"replica{number}"]
        for alias, settings in zip(self._aliases, (primary, replica), strict=True):
            django_databases.add(alias, django_databases.mysql(settings, CONN_MAX_AGE=None))
        self.primary, self.replica = (connections[alias] for alias in self._aliases)

    @contextmanager
    def _request(self) -> Iterator[Any]:
        from django.db import connections

        connection = connections[self._aliases[threadbridge.on_replica()]]
        try:
            yield connection
        finally:
            connection.close_if_unusable_or_obsolete()

    def execute(self, *statements: str) -> Sequence[Sequence[Any]]:
        from django.db import transaction

        with self._request() as connection, transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else ()
        return rows

    def close(self) -> None:
        from tests.support import django_databases

        for alias in self._aliases:
            django_databases.remove(alias)


STACKS = (DBUtils, SQLAlchemy, MySQLConnector, Django)
