"""Django in this process, with databases that come and go: its settings can be set only once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import django
from django.conf import settings
from django.db import connections

# Where each model of the tests is read and written; the rest of them in "default".
routes: dict[str, str] = {}


class Router:
    """See Django's ``DATABASE_ROUTERS``."""

    def db_for_read(self, model: type[object], **hints: object) -> str | None:
        return routes.get(model.__name__)

    db_for_write = db_for_read


def mysql(server: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The entry of ``DATABASES`` for the arguments of ``MySQLdb.connect``."""
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": server["database"],
        "USER": server["user"],
        "PASSWORD": server["password"],
        "HOST": server["unix_socket"],
        **changes,
    }


def postgresql(server: dict[str, str], **changes: Any) -> dict[str, Any]:
    """The entry of ``DATABASES`` for libpq's variables."""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": server["PGUSER"],
        "HOST": server["PGHOST"],
        **changes,
    }


def add(alias: str, entry: dict[str, Any]) -> None:
    """Add a database, or replace the one of that name."""
    with suppress(AttributeError):
        del connections[alias]
    connections.settings[alias] = connections.configure_settings({"default": {}, alias: entry})[alias]


def remove(alias: str) -> None:
    """Remove a database, with this thread's connection and the pool, if any."""
    connection = connections[alias]
    connection.close()
    if getattr(connection, "pool", None) is not None:
        connection.close_pool()
    del connections[alias]
    connections.settings.pop(alias)


@contextmanager
def database(alias: str, entry: dict[str, Any]) -> Iterator[None]:
    """A database that is removed after the block."""
    add(alias, entry)
    try:
        yield
    finally:
        remove(alias)


# Models can be imported only after this.
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={},
    DATABASE_ROUTERS=["tests.support.django_databases.Router"],
    INSTALLED_APPS=[],
    MIDDLEWARE=[],
    ROOT_URLCONF="tests.support.django_views",
    SECRET_KEY="for tests",
    USE_TZ=True,
)
django.setup()
