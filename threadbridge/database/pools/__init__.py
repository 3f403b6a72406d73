"""The kinds of pools that are guarded: each has a module, and only that knows the pool's library. Worker side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from threadbridge.crossing.current import TrackedRequest

if TYPE_CHECKING:
    from threadbridge.database.guard import Guard


def make_guards(pool: object, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> list[Guard]:
    """Attach a guard to a pool, or to each of a sequence of pools. Any thread.

    ``options`` are those of the guards. Raises ``ValueError`` if a pool cannot be guarded; then none is.
    """
    try:
        # Not above: DBUtils is needed only where there is a pool of its making.
        from threadbridge.database.pools.dbutils import DBUtilsGuard
        from threadbridge.database.pools.dbutils_check import pool_size
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "dbutils":
            raise
        raise ValueError(
            "pool= needs DBUtils 3.2 or later, below 4, which is not installed; install it, or leave pool out and "
            "give threads="
        ) from None
    pools = list(pool) if isinstance(pool, Sequence) and not isinstance(pool, str) else [pool]
    for each in pools:
        pool_size(each)
    guards: list[Guard] = []
    try:
        for each in pools:
            guards.append(DBUtilsGuard(each, on_ask, **options))
    except ValueError:
        for guard in guards:
            guard.close()
        raise
    return guards
