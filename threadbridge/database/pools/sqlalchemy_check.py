"""Checks that an SQLAlchemy engine is one that the guard knows, and describes it."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.pool import AssertionPool, Pool, QueuePool, StaticPool

from threadbridge.database.pools.kind import check_names


def check(engine: Engine) -> None:
    """Raise ``ValueError`` if the engine cannot be guarded, or SQLAlchemy lacks a name that is used."""
    if isinstance(engine.pool, StaticPool):
        raise ValueError(
            f"all requests would share the one connection of {describe(engine)} (StaticPool); give the engine another "
            "poolclass"
        )
    # How many connections a QueuePool may make beyond its size; whether a pool tests a connection before it hands it
    # out, and after how many seconds it replaces it; the engine of which one with other options shares the pool.
    of_queue = "_max_overflow" if isinstance(engine.pool, QueuePool) else ""
    used = {engine.pool: f"{of_queue} _pre_ping _recycle", OptionEngine: "_proxied"}
    check_names("SQLAlchemy", "SQLAlchemy 2.0 and 2.1", used)


def describe(engine: Engine) -> str:
    """The engine, for operators: without its password and parameters."""
    url = engine.url.set(query={})
    return f"SQLAlchemy engine {url.render_as_string(hide_password=True)}"


def size_of(pool: Pool) -> int:
    """How many connections a pool hands out at once; 0: unlimited."""
    if not isinstance(pool, QueuePool):
        return 1 if isinstance(pool, AssertionPool) else 0
    overflow = pool._max_overflow
    return 0 if overflow < 0 or not pool.size() else pool.size() + overflow
