"""SQLAlchemy's engines, and the Flask-SQLAlchemy objects that have some, as a `PoolKind`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.pool import QueuePool, StaticPool

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.sqlalchemy import SQLAlchemyGuard, size_of
from threadbridge.database.pools.sqlalchemy import describe as name_of

# What a Flask-SQLAlchemy object has: for each application, its engines by their bind key. The public `engines` needs an
# application context, whose end runs the application's own functions.
_PRIVATE = "_app_engines"


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
    engines: dict[str, Any] = {}
    for of_application in list(getattr(value, _PRIVATE, {}).values()):
        # The default one first: its lane is that of routes of which nothing is known.
        for key in sorted(of_application, key=lambda key: key or ""):
            name = key or ("default" if len(of_application) > 1 else "")
            # Another application may have the same.
            engines[f"{name}-{len(engines)}" if name in engines else name] = of_application[key]
    return engines


def size(pool: Any) -> int:
    if isinstance(pool.pool, StaticPool):
        raise ValueError(
            f"all requests would share the one connection of {name_of(pool)} (StaticPool); give the engine another "
            "poolclass"
        )
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
    """An engine is noticed when it connects: the first connection of a new one is not guarded."""

    def on_connect(connection: Connection) -> None:
        for engine in pools_of(connection.engine).values():
            on_new(engine)

    event.listen(Engine, "engine_connect", on_connect)


def close_idle(pool: Any) -> None:
    pool.dispose()
