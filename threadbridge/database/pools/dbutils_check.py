"""Checks that a pool is a ``PooledDB`` of a DBUtils that the guard knows, and reads how it makes its connections."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from dbutils import pooled_db
from dbutils.pooled_db import PooledDB, PooledDedicatedDBConnection, PooledSharedDBConnection
from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.drivers import database_of
from threadbridge.database.pools.kind import check_names

# The names of DBUtils that are used, most of them private: it offers no other way to count, hand out and take back
# connections without network traffic under its lock.
_OF_POOL = (
    "_args _blocking _connections _creator _failures _idle_cache _isfatal _kwargs _lock _maxcached _maxconnections "
    "_maxshared _maxusage _ping _reset _setsession _wait_lock cache connection steady_connection unshare"
)
_USED = {
    # It has that only if it shares connections.
    PooledDB: "_shared_cache",
    SteadyDBConnection: (
        "_close _closeable _closed _con _create _cursor _failures _maxusage _ping _ping_check _pinger _setsession "
        "_store _transaction _usage"
    ),
    SteadyDBCursor: (
        "__getattr__ _args _clearsizes _closed _con _cursor _inputsizes _kwargs _no_failover _outputsizes _setsizes"
    ),
    PooledDedicatedDBConnection: "__getattr__ _con",
    PooledSharedDBConnection: "_con",
    pooled_db: "TooManyConnectionsError",
}
_PARAMETERS_OF_CONNECTION = "self creator maxusage setsession failures ping closeable isfatal args kwargs"


def pool_size(pool: object) -> int:
    """How many connections a ``PooledDB`` hands out at once; 0: unlimited. Raises ``ValueError`` if not supported."""
    if not isinstance(pool, PooledDB):
        raise ValueError(f"pool={pool!r} is not a PooledDB of DBUtils; give the pool object itself, or leave pool out")
    differing = []
    if " ".join(inspect.signature(SteadyDBConnection.__init__).parameters) != _PARAMETERS_OF_CONNECTION:
        differing.append(f"SteadyDBConnection({_PARAMETERS_OF_CONNECTION})")
    used = {pool: _OF_POOL, **_USED}
    check_names(f"DBUtils {pool.version}", "DBUtils 3.2 and later, below 4", used, differing)
    return int(pool._maxconnections)


def connection_settings(pool: Any) -> ConnectionSettings:
    """How a pool that `pool_size` has accepted makes its connections."""
    connect = getattr(pool._creator, "connect", pool._creator)
    settings = ConnectionSettings(connect, pool._args, pool._kwargs)
    return replace(settings, takes_timeouts=database_of([creator_module(pool)], settings) is not None)


def creator_module(pool: Any) -> str:
    """The module of the function that makes the pool's connections: a driver's, or the application's."""
    creator = pool._creator
    if inspect.ismodule(creator):
        return creator.__name__
    return getattr(getattr(creator, "connect", creator), "__module__", "")
