"""DBUtils' pools, as a `PoolKind`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dbutils.pooled_db import PooledDB

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.pools.dbutils_check import creator_module, pool_size
from threadbridge.database.pools.kind import Advice, PoolLoad, closed_while_idle, watch_constructor


def pools_of(value: Any) -> Mapping[str, Any]:
    return {"": value} if isinstance(value, PooledDB) else {}


def size(pool: Any) -> int:
    return pool_size(pool)


def describe(pool: Any) -> str:
    count = size(pool)
    return f"PooledDB of {creator_module(pool)}, {f'{count} connections' if count else 'unlimited'}"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return DBUtilsGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    watch_constructor(PooledDB, on_new)


def close_idle(pool: Any) -> None:
    pool.close()


def advice(pool: Any, load: PoolLoad) -> Iterator[Advice]:
    kept, used = pool._maxcached, min(load.threads, size(pool) or load.threads)
    if 0 < kept < used:
        yield Advice(
            "maxcached",
            f"the pool keeps only {kept} idle connections, but {used} are in use under load: it keeps closing the "
            "others and making new ones",
            f"leave out maxcached, or set it to {used}",
        )
    if not pool._blocking and 0 < size(pool) < load.threads:
        yield Advice(
            "blocking",
            f"{load.threads} threads share {size(pool)} connections, and a request that finds none free fails with "
            "TooManyConnections",
            "set blocking=True, or leave out --threads",
        )
    if not pool._ping:
        yield from closed_while_idle("ping", load, "leave out ping=0: the pool then tests a connection before its use")
