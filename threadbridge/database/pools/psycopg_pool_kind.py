"""The pools of psycopg_pool, as a `PoolKind`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from psycopg_pool import ConnectionPool

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard
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
    return int(pool.max_size)


def describe(pool: Any) -> str:
    count = size(pool)
    return f"{name_of(pool)}, {f'{count} connections' if count else 'unlimited'}"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return PsycopgPoolGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    """There is no event: the constructor is wrapped."""
    construct = ConnectionPool.__init__

    @functools.wraps(construct)
    def construct_and_tell(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        on_new(self)

    ConnectionPool.__init__ = construct_and_tell  # type: ignore[method-assign]


def close_idle(pool: Any) -> None:
    pool.close()
