"""Django's databases, found by ``django.db.connections``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.django import DjangoGuard
from threadbridge.database.pools.django_check import check
from threadbridge.database.pools.django_check import describe as name_of
from threadbridge.database.pools.kind import Advice, PoolLoad, waits_too_long


def pools_of(value: Any) -> Mapping[str, Any]:
    """For each alias, the connection of this thread, which stands for those of all threads."""
    cls = type(value)
    if not settings.configured:
        return {}
    # Without an ENGINE, Django has a dummy.
    databases = {alias: connections[alias] for alias in connections if connections[alias].vendor != "unknown"}
    if issubclass(cls, ConnectionHandler):
        return databases if len(databases) > 1 else dict(zip([""], databases.values(), strict=False))
    # Django's caches have proxies of the same class.
    alias = DEFAULT_DB_ALIAS if value is connection else value.alias if issubclass(cls, BaseDatabaseWrapper) else None
    return {"": databases[alias]} if alias in databases else {}


def size(pool: Any) -> int:
    """How many connections psycopg's pool has; without one, Django makes a connection for each thread."""
    check(pool)
    of_psycopg = getattr(pool, "pool", None)
    return 0 if of_psycopg is None else int(of_psycopg.max_size)


def describe(pool: Any) -> str:
    count = size(pool)
    return f"{name_of(pool)}, {f'{count} connections' if count else 'a connection for each thread'}"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return DjangoGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    """Django's databases are those of its settings; none are made later."""


def close_idle(pool: Any) -> None:
    pool.close()
    if getattr(pool, "pool", None) is not None:
        pool.close_pool()


def advice(pool: Any, load: PoolLoad) -> Iterator[Advice]:
    of_psycopg = getattr(pool, "pool", None)
    if of_psycopg is not None:
        # Not above: few need it.
        from threadbridge.database.pools.psycopg_pool_kind import advice_on_keeping

        yield from advice_on_keeping(of_psycopg, load, "CONN_HEALTH_CHECKS", "set CONN_HEALTH_CHECKS=True")
        yield from waits_too_long("timeout", of_psycopg.timeout, size(pool), load)
        return
    # A file is opened fast.
    if pool.vendor == "sqlite":
        return
    if pool.settings_dict["CONN_MAX_AGE"] == 0:
        pooled = ', or OPTIONS={"pool": True}' if pool.vendor == "postgresql" else ""
        yield Advice(
            "CONN_MAX_AGE",
            "it is 0: each request connects to the database",
            f"set CONN_MAX_AGE=600 and CONN_HEALTH_CHECKS=True{pooled}",
        )
    elif not pool.settings_dict["CONN_HEALTH_CHECKS"]:
        yield Advice(
            "CONN_HEALTH_CHECKS",
            "connections are kept, but not tested: after a restart of the database, or if it closes idle connections, "
            "a request fails in each thread",
            "set CONN_HEALTH_CHECKS=True",
        )
