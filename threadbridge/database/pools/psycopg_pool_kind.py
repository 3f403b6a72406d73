"""The pools of psycopg_pool, as a `PoolKind`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psycopg_pool import ConnectionPool, NullConnectionPool

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.kind import Advice, PoolLoad, closed_while_idle, waits_too_long, watch_constructor
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard, check
from threadbridge.database.pools.psycopg_pool import describe as name_of

# Django's pools, by alias; there is no public name.
_OF_DJANGO = "_connection_pools"


def pools_of(value: Any) -> Mapping[str, Any]:
    # Requests run in threads, where asynchronous pools cannot be used.
    return {"": value} if issubclass(type(value), ConnectionPool) and not _is_djangos(value) else {}


def _is_djangos(pool: object) -> bool:
    """Whether the pool belongs to a database of Django's, which has a guard for both."""
    django = sys.modules.get("django.db.backends.postgresql.base")
    return django is not None and pool in getattr(django.DatabaseWrapper, _OF_DJANGO, {}).values()


def size(pool: Any) -> int:
    check(pool)
    return int(pool.max_size)


def describe(pool: Any) -> str:
    count = size(pool)
    return f"{name_of(pool)}, {f'{count} connections' if count else 'unlimited'}"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return PsycopgPoolGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    watch_constructor(ConnectionPool, on_new)


def close_idle(pool: Any) -> None:
    pool.close()


def advice(pool: Any, load: PoolLoad) -> Iterator[Advice]:
    count = size(pool)
    if isinstance(pool, NullConnectionPool):
        yield Advice(
            "NullConnectionPool",
            "each use of the pool connects to the database",
            "use a ConnectionPool, unless a pool such as PgBouncer is between here and the database",
        )
    else:
        yield from advice_on_keeping(pool, load, "check", "set check=ConnectionPool.check_connection")
    yield from waits_too_long("timeout", pool.timeout, count, load)


def advice_on_keeping(pool: Any, load: PoolLoad, test: str, remedy: str) -> Iterator[Advice]:
    """Advice on a pool that keeps connections; ``test`` is the setting by which it tests them before use."""
    used = min(load.threads, size(pool))
    if not pool.min_size:
        yield Advice(
            "min_size",
            f"it is 0: after {pool.max_idle:g} s without requests the pool has no connection, and the next requests "
            "wait for new ones",
            f"set min_size to at least 1, or to {used} if many requests come at once",
        )
    if load.idle_timeout is not None and pool._check is None and pool.max_lifetime > load.idle_timeout:
        yield from closed_while_idle(test, load, f"{remedy}, or a max_lifetime of less than {load.idle_timeout:g}")
