"""Checks that a pool is a ``PooledDB`` of a DBUtils that the guard knows, and reads how it makes its connections.

`pool`, `guarded_connection` and `guarded_cursor` are the other modules that know DBUtils. The private names of DBUtils
that they use are listed here.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from dbutils import pooled_db
from dbutils.pooled_db import PooledDB
from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.drivers import database_of

SUPPORTED = "3.2 and later, below 4"

# DBUtils offers no other way to count, hand out and take back connections without network traffic under its lock.
_OF_POOL = (
    *("_args", "_blocking", "_connections", "_creator", "_failures", "_idle_cache", "_isfatal", "_kwargs", "_lock"),
    *("_maxcached", "_maxconnections", "_maxshared", "_maxusage", "_ping", "_reset", "_setsession", "_wait_lock"),
    *("cache", "connection", "steady_connection", "unshare"),
)
_OF_CONNECTION = ("_close", "_create", "_cursor", "_ping_check", "_setsession", "_store")
_PARAMETERS_OF_CONNECTION = "self creator maxusage setsession failures ping closeable isfatal args kwargs"
_OF_CURSOR = ("__getattr__", "_clearsizes", "_setsizes")


def pool_size(pool: object) -> int:
    """How many connections a ``PooledDB`` hands out at once; 0 if that is unlimited.

    Raises ``ValueError`` if the object is not a ``PooledDB``, or is one of a DBUtils that threadbridge does not know.
    """
    if not isinstance(pool, PooledDB):
        raise ValueError(f"pool={pool!r} is not a PooledDB of DBUtils; give the pool object itself, or leave pool out")
    missing = [name for name in _OF_POOL if not hasattr(pool, name)]
    missing += [name for name in _OF_CONNECTION if not hasattr(SteadyDBConnection, name)]
    missing += [name for name in _OF_CURSOR if not hasattr(SteadyDBCursor, name)]
    missing += [name for name in ("TooManyConnectionsError",) if not hasattr(pooled_db, name)]
    if " ".join(inspect.signature(SteadyDBConnection.__init__).parameters) != _PARAMETERS_OF_CONNECTION:
        missing.append(f"SteadyDBConnection({_PARAMETERS_OF_CONNECTION})")
    if missing:
        raise ValueError(
            f"DBUtils {pool.version} has no {', '.join(missing)}; threadbridge supports DBUtils {SUPPORTED}: install "
            "that, or leave pool out and give threads="
        )
    size: int = pool._maxconnections
    return size


def connection_settings(pool: Any, statement_limit: float = 0.0) -> ConnectionSettings:
    """How a pool that `pool_size` has accepted makes its connections.

    :param statement_limit: see `ConnectionSettings`.
    """
    connect = getattr(pool._creator, "connect", pool._creator)
    settings = ConnectionSettings(connect, pool._args, pool._kwargs, statement_limit=statement_limit)
    is_drivers_own = database_of([creator_module(pool)], settings) is not None
    return replace(settings, takes_timeouts=is_drivers_own)


def creator_module(pool: Any) -> str:
    """The module of the function that makes the pool's connections: a driver's, or the application's."""
    creator = pool._creator
    if inspect.ismodule(creator):
        return creator.__name__
    return getattr(getattr(creator, "connect", creator), "__module__", "")
