"""Django's databases, as stacks of the contract."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import django.db
from django.db import connections, transaction

from tests.database.contract.servers import Server, SQLite
from tests.database.contract.stacks import LOCK_TIMEOUT, POOL_TIMEOUT, Stack
from tests.support import django_databases
from threadbridge.database.pools.django import DjangoGuard

_numbers = itertools.count(1)


class _Connection:
    """Django's connection, in a transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.commit, self.rollback = connection.commit, connection.rollback

    def execute(self, sql: str, *parameters: object) -> Sequence[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall()) if cursor.description else ()


class Django(Stack):
    """What Django's signals do with a connection at the end of a request is done at the end of `use`."""

    errors = django.db.Error

    def __init__(self, server: Server, entry: dict[str, Any]) -> None:
        self.alias = f"stack{next(_numbers)}"
        self.connects_in_requests = "pool" not in entry.get("OPTIONS", {})
        django_databases.add(self.alias, entry)
        super().__init__(server, DjangoGuard(self.alias))

    @contextmanager
    def _request(self) -> Iterator[Any]:
        connection = connections[self.alias]
        try:
            yield connection
        finally:
            connection.close_if_unusable_or_obsolete()

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        with self._request() as connection:
            transaction.set_autocommit(False, using=self.alias)
            # Not restored, so that Django closes the connection.
            yield _Connection(connection)

    def transfer(self, number: int, source: int, target: int) -> None:
        with self._request() as connection, transaction.atomic(using=self.alias), connection.cursor() as cursor:
            cursor.execute("INSERT INTO ledger VALUES (%s, %s, %s)", [number, source, target])
            cursor.execute("UPDATE accounts SET amount = amount - 1 WHERE id = %s", [source])
            cursor.execute("UPDATE accounts SET amount = amount + 1 WHERE id = %s", [target])

    def close(self) -> None:
        super().close()
        django_databases.remove(self.alias)


# Connections that outlive their requests.
_KEPT = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}


def _mysql(**changes: Any) -> Callable[..., Stack]:
    return lambda server, size: Django(server, django_databases.mysql(server.settings, **changes))


def _postgresql(server: Any, size: int) -> Stack:
    return Django(server, django_databases.postgresql(server.settings, **_KEPT))


def _postgresql_pool(server: Any, size: int) -> Stack:
    pool = {"min_size": 1, "max_size": size, "timeout": POOL_TIMEOUT}
    return Django(server, django_databases.postgresql(server.settings, OPTIONS={"pool": pool}))


def _sqlite(server: SQLite, size: int) -> Stack:
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": server.path, "OPTIONS": {"timeout": LOCK_TIMEOUT}}
    return Django(server, {**entry, **_KEPT})


DJANGO_STACKS: dict[str, tuple[str, Callable[..., Stack]]] = {
    "django-mysqlclient": ("mariadb_server", _mysql()),
    "django-mysqlclient-kept": ("mariadb_server", _mysql(**_KEPT)),
    "django-psycopg": ("postgresql_server", _postgresql),
    "django-psycopg-pool": ("postgresql_server", _postgresql_pool),
    "django-sqlite": ("sqlite_file", _sqlite),
}
