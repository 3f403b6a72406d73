"""The pools of mysql-connector-python, as a `PoolKind`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mysql.connector.pooling import MySQLConnectionPool

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.kind import Advice, PoolLoad, watch_constructor
from threadbridge.database.pools.mysql_connector import MySQLConnectorGuard, check


def pools_of(value: Any) -> Mapping[str, Any]:
    return {"": value} if issubclass(type(value), MySQLConnectionPool) else {}


def size(pool: Any) -> int:
    check(pool)
    return int(pool.pool_size)


def describe(pool: Any) -> str:
    return f"MySQLConnectionPool {pool.pool_name}, {pool.pool_size} connections"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return MySQLConnectorGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    watch_constructor(MySQLConnectionPool, on_new)


def close_idle(pool: Any) -> None:
    queue = pool._cnx_queue
    for _ in range(queue.qsize()):
        connection = queue.get_nowait()
        connection.close()
        # The pool makes no others, but connects this one again for the one who gets it, as in a forked process.
        queue.put_nowait(connection)


def advice(pool: Any, load: PoolLoad) -> Iterator[Advice]:
    if not pool.reset_session:
        yield Advice(
            "pool_reset_session",
            "what a request changes in its session, such as user variables and temporary tables, reaches the next "
            "request that gets its connection",
            "leave out pool_reset_session=False",
        )
