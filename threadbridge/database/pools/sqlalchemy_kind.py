"""SQLAlchemy's engines, and the Flask-SQLAlchemy objects that have some, as a `PoolKind`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.pool import NullPool, QueuePool

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.kind import (
    Advice,
    PoolLoad,
    check_names,
    closed_while_idle,
    waits_too_long,
    watch_constructor,
)
from threadbridge.database.pools.sqlalchemy import SQLAlchemyGuard
from threadbridge.database.pools.sqlalchemy_check import check, size_of
from threadbridge.database.pools.sqlalchemy_check import describe as name_of


def pools_of(value: Any) -> Mapping[str, Any]:
    cls = type(value)
    if issubclass(cls, OptionEngine):
        # It has the pool of another engine.
        return pools_of(value._proxied)
    if issubclass(cls, Engine):
        # Requests run in threads, where asynchronous engines cannot be used.
        return {} if value.dialect.is_async else {"": value}
    extension = sys.modules.get("flask_sqlalchemy")
    if extension is None or not issubclass(cls, extension.SQLAlchemy):
        return {}
    # By application and bind key. The public ``engines`` needs an application context, whose end runs the application's
    # own functions.
    check_names("Flask-SQLAlchemy", "Flask-SQLAlchemy 3", {value: "_app_engines"})
    engines: dict[str, Any] = {}
    for of_application in list(value._app_engines.values()):
        # The default one first: its lane is that of routes of which nothing is known.
        for key in sorted(of_application, key=lambda key: key or ""):
            name = key or ("default" if len(of_application) > 1 else "")
            # Another application may have the same.
            engines[f"{name}-{len(engines)}" if name in engines else name] = of_application[key]
    return engines


def size(pool: Any) -> int:
    check(pool)
    return size_of(pool.pool)


def describe(pool: Any) -> str:
    total = size(pool)
    if not total:
        return f"{name_of(pool)}, unlimited"
    kept = pool.pool.size() if isinstance(pool.pool, QueuePool) else total
    overflow = f" ({kept} + {total - kept} overflow)" if total > kept else ""
    return f"{name_of(pool)}, {total} connections{overflow}"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return SQLAlchemyGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    """An engine counts as new when it is first asked for a connection: before that, it is not complete.

    Not by the event ``engine_connect``: with that, each statement of all engines takes longer.
    """
    lock = threading.Lock()

    def wrap(engine: Engine, pool: Any) -> Any:
        recreate = pool.recreate

        def connect() -> Any:
            with lock:
                if pool.__dict__.get("connect") is connect:
                    del pool.connect, pool.recreate
                    on_new(engine)
            return engine.pool.connect()

        # When it is disposed of before, the engine gets another pool.
        pool.connect, pool.recreate = connect, lambda: wrap(engine, recreate())
        return pool

    def on_made(engine: Engine) -> None:
        if pools_of(engine):
            wrap(engine, engine.pool)

    watch_constructor(Engine, on_made)


def close_idle(pool: Any) -> None:
    pool.dispose()


def advice(pool: Any, load: PoolLoad) -> Iterator[Advice]:
    if isinstance(pool.pool, NullPool):
        # A file is opened fast.
        if pool.dialect.name != "sqlite":
            yield Advice(
                "poolclass",
                "each use of a NullPool connects to the database",
                f"leave out poolclass=NullPool, and set pool_size={load.threads} and max_overflow=0",
            )
        return
    if not isinstance(pool.pool, QueuePool):
        return
    kept, total = pool.pool.size(), size(pool)
    used = min(load.threads, total or load.threads)
    if 0 < kept < used:
        yield Advice(
            "max_overflow",
            f"the pool keeps {kept} connections, but {used} are in use under load: SQLAlchemy closes the others after "
            "use, and keeps making new ones",
            f"set pool_size={used} and max_overflow=0",
        )
    # -1: never.
    recycle = pool.pool._recycle
    is_kept = load.idle_timeout is not None and (recycle < 0 or recycle >= load.idle_timeout)
    if is_kept and not pool.pool._pre_ping:
        yield from closed_while_idle(
            "pool_pre_ping",
            load,
            f"set pool_pre_ping=True, or a pool_recycle of less than {load.idle_timeout:g}",
        )
    yield from waits_too_long("pool_timeout", pool.pool.timeout(), total, load)
