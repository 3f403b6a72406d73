"""Combinations of a pool and a driver, each of which must keep the same promises: see `Stack`."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import mysql.connector
import psycopg
import sqlalchemy
from dbutils.persistent_db import PersistentDB
from dbutils.pooled_db import PooledDB
from mysql.connector.pooling import MySQLConnectionPool
from psycopg_pool import ConnectionPool, NullConnectionPool

from tests.database.contract.servers import MariaDB, PostgreSQL, Server, SQLite
from threadbridge.database.guard import Guard
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.pools.driver import DriverGuard
from threadbridge.database.pools.mysql_connector import MySQLConnectorGuard
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard
from threadbridge.database.pools.sqlalchemy import SQLAlchemyGuard

# For PyMySQL: otherwise each connection costs 20 ms of processor time, for a TLS context that it does not use.
PLAIN = {"ssl_disabled": True}
# Seconds; those for which psycopg's pool waits for a connection, even if the server is out of reach.
POOL_TIMEOUT = 3.0
# For SQLite, in seconds: a wait for a lock cannot be stopped.
LOCK_TIMEOUT = 0.02


class Stack(abc.ABC):
    """A pool of ``size`` connections with its guard, over a server.

    `use` gives a connection for a while, as an application of that stack gets it, with ``execute(sql, *parameters)``,
    which returns the rows if there are any, ``commit()`` and ``rollback()``. ``errors`` are those that it raises
    for the driver's.
    """

    errors: type[Exception]
    # Whether requests wait for a connection.
    has_line = True
    # Whether the request's own thread makes the connections.
    connects_in_requests = True

    def __init__(self, server: Server, guard: Guard) -> None:
        self.server = server
        self.guard = guard

    @abc.abstractmethod
    def use(self) -> Any: ...

    def close(self) -> None:
        self.guard.close()

    def ask(self, sql: str, *parameters: object) -> Any:
        with self.use() as connection:
            return connection.execute(sql, *parameters)

    def transfer(self, number: int, source: int, target: int) -> None:
        """One row and two accounts, or nothing."""
        with self.use() as connection:
            connection.execute(self.in_style("INSERT INTO ledger VALUES (%s, %s, %s)"), number, source, target)
            connection.execute(self.in_style("UPDATE accounts SET amount = amount - 1 WHERE id = %s"), source)
            connection.execute(self.in_style("UPDATE accounts SET amount = amount + 1 WHERE id = %s"), target)
            connection.commit()

    def transfer_slowly(self, number: int, source: int, target: int) -> None:
        """The same, but with a statement that computes in its middle."""
        with self.use() as connection:
            connection.execute(self.in_style("INSERT INTO ledger VALUES (%s, %s, %s)"), number, source, target)
            connection.execute(self.server.compute)
            connection.commit()

    def in_style(self, sql: str) -> str:
        """With the driver's placeholders in place of ``%s``."""
        return sql.replace("%s", self.server.placeholder)


class _Connection:
    """A DB-API connection, as an application uses it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.commit, self.rollback = connection.commit, connection.rollback

    def execute(self, sql: str, *parameters: object) -> Sequence[Any]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else ()


class _Block(_Connection):
    """The same in a block that commits at its end if it is to."""

    has_committed = False

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.commit, self.rollback = self._commit, self._rollback

    def _commit(self) -> None:
        self.has_committed = True

    def _rollback(self) -> None:
        raise psycopg.Rollback


class DBUtils(Stack):
    def __init__(self, server: Server, driver: str, size: int, **settings: Any) -> None:
        module = importlib.import_module(driver)
        self.errors = module.Error
        self.pool = PooledDB(module, maxconnections=size, blocking=True, **settings)
        super().__init__(server, DBUtilsGuard(self.pool))

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        with closing(self.pool.connection()) as connection:
            yield _Connection(connection)

    def close(self) -> None:
        super().close()
        self.pool.close()


class _Engine:
    """A connection of an engine."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection
        self.commit, self.rollback = connection.commit, connection.rollback

    def execute(self, sql: str, *parameters: object) -> Sequence[Any]:
        result = self._connection.exec_driver_sql(sql, parameters)
        return [tuple(row) for row in result] if result.returns_rows else ()


class SQLAlchemy(Stack):
    errors = sqlalchemy.exc.DBAPIError

    def __init__(self, server: Server, url: Any, size: int, **settings: Any) -> None:
        self.engine = sqlalchemy.create_engine(url, pool_size=size, max_overflow=0, **settings)
        super().__init__(server, SQLAlchemyGuard(self.engine))

    @contextmanager
    def use(self) -> Iterator[_Engine]:
        with self.engine.connect() as connection:
            yield _Engine(connection)

    def close(self) -> None:
        super().close()
        self.engine.dispose()


def _sqlalchemy_mysql(driver: str, **arguments: Any) -> Callable[..., Stack]:
    def make(server: MariaDB, size: int) -> Stack:
        settings = server.settings
        url = sqlalchemy.URL.create(
            f"mysql+{driver}",
            settings["user"],
            settings["password"],
            host="localhost",
            database=settings["database"],
            query={"unix_socket": settings["unix_socket"]},
        )
        return SQLAlchemy(server, url, size, connect_args=arguments)

    return make


def _sqlalchemy_postgresql(driver: str) -> Callable[..., Stack]:
    def make(server: PostgreSQL, size: int) -> Stack:
        settings = server.settings
        url = sqlalchemy.URL.create(
            f"postgresql+{driver}",
            settings["PGUSER"],
            database="postgres",
            query={"host": settings["PGHOST"]},
        )
        return SQLAlchemy(server, url, size)

    return make


class PsycopgPool(Stack):
    errors = psycopg.Error
    connects_in_requests = False

    def __init__(self, server: PostgreSQL, size: int, kind: Any = ConnectionPool, **settings: Any) -> None:
        where = {"host": server.settings["PGHOST"], "user": server.settings["PGUSER"], "dbname": "postgres"}
        self.pool = kind(kwargs=where, max_size=size, open=True, timeout=POOL_TIMEOUT, **{"min_size": 1, **settings})
        super().__init__(server, PsycopgPoolGuard(self.pool))

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        connection = self.pool.getconn()
        try:
            yield _Connection(connection)
        finally:
            self.pool.putconn(connection)

    def close(self) -> None:
        super().close()
        self.pool.close()


class PsycopgBlocks(PsycopgPool):
    """With the pool's and the connections' context managers, which commit."""

    @contextmanager
    def use(self) -> Iterator[Any]:
        with self.pool.connection() as connection, connection.transaction():
            block = _Block(connection)
            yield block
            if not block.has_committed:
                raise psycopg.Rollback


class MySQLConnector(Stack):
    errors = mysql.connector.Error
    connects_in_requests = False

    def __init__(self, server: MariaDB, size: int) -> None:
        self.pool = MySQLConnectionPool(pool_size=size, pool_name="contract", **server.settings)
        super().__init__(server, MySQLConnectorGuard(self.pool))

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        with self.pool.get_connection() as connection:
            yield _Connection(connection)

    def close(self) -> None:
        super().close()
        self.pool._remove_connections()


class Driver(Stack):
    """A connection for each use, without a pool."""

    has_line = False

    def __init__(self, server: MariaDB, driver: str, **settings: Any) -> None:
        self.module = importlib.import_module(driver)
        self.settings = {**server.settings, **settings}
        self.errors = self.module.Error
        super().__init__(server, DriverGuard(self.module))

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        with closing(self.module.connect(**self.settings)) as connection:
            yield _Connection(connection)


class PersistentDriver(Driver):
    """A connection for each thread."""

    def __init__(self, server: MariaDB, driver: str) -> None:
        super().__init__(server, driver)
        # By default, DBUtils runs a failed statement again on a new connection, although those before it are lost.
        self.connections = PersistentDB(self.module, failures=self.module.NotSupportedError, **self.settings)

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        connection = self.connections.connection()
        try:
            yield _Connection(connection)
        finally:
            connection.rollback()


def _dbutils_sqlite(server: SQLite, size: int) -> Stack:
    return DBUtils(server, "sqlite3", size, database=server.path, timeout=LOCK_TIMEOUT)


def _sqlalchemy_sqlite(server: SQLite, size: int) -> Stack:
    return SQLAlchemy(server, f"sqlite:///{server.path}", size, connect_args={"timeout": LOCK_TIMEOUT})


# They have pool and driver in common with another stack, or the driver alone with many.
VARIANTS = frozenset(
    {
        "dbutils-sqlite",
        "django-mysqlclient-kept",
        "django-sqlite",
        "driver-mysqlclient",
        "driver-mysqlclient-persistent",
        "driver-pymysql",
        "psycopg_pool-blocks",
        "psycopg_pool-null",
    }
)
# By name: the fixture of the server, and what makes the stack.
STACKS: dict[str, tuple[str, Callable[..., Stack]]] = {
    "dbutils-mysqlclient": ("mariadb_server", lambda server, size: DBUtils(server, "MySQLdb", size, **server.settings)),
    "dbutils-pymysql": (
        "mariadb_server",
        lambda server, size: DBUtils(server, "pymysql", size, **PLAIN, **server.settings),
    ),
    "driver-mysqlclient": ("mariadb_server", lambda server, size: Driver(server, "MySQLdb")),
    "driver-mysqlclient-persistent": ("mariadb_server", lambda server, size: PersistentDriver(server, "MySQLdb")),
    "driver-pymysql": ("mariadb_server", lambda server, size: Driver(server, "pymysql", **PLAIN)),
    "mysql-connector": ("mariadb_server", MySQLConnector),
    "sqlalchemy-pymysql": ("mariadb_server", _sqlalchemy_mysql("pymysql", **PLAIN)),
    "sqlalchemy-mysqlclient": ("mariadb_server", _sqlalchemy_mysql("mysqldb")),
    "sqlalchemy-psycopg": ("postgresql_server", _sqlalchemy_postgresql("psycopg")),
    "psycopg_pool": ("postgresql_server", PsycopgPool),
    "psycopg_pool-blocks": ("postgresql_server", PsycopgBlocks),
    "psycopg_pool-null": (
        "postgresql_server",
        lambda server, size: PsycopgPool(server, size, NullConnectionPool, min_size=0),
    ),
    "dbutils-sqlite": ("sqlite_file", _dbutils_sqlite),
    "sqlalchemy-sqlite": ("sqlite_file", _sqlalchemy_sqlite),
    "sqlalchemy-psycopg2": ("postgresql_server", _sqlalchemy_postgresql("psycopg2")),
}
