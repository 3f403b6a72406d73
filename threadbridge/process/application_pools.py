"""The pools of the application that a process serves: those that the settings name, or all that are found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from threadbridge.crossing.lanes import Lane
from threadbridge.database.pools import pools_in
from threadbridge.database.pools.finding import find_pools, watch_for_pools
from threadbridge.database.pools.kind import FoundPool
from threadbridge.settings.table import Settings

logger = logging.getLogger("threadbridge")

# How many requests run at once if neither the settings nor a pool say it. waitress has 4 threads, gunicorn 1. A request
# that waits for a database needs little else, and a database allows 100 connections (PostgreSQL) or 151 (MySQL).
DEFAULT_THREADS = 10


class ApplicationPools:
    """The pools, and the number of threads that follows.

    With ``threads=1`` none is looked for: whoever sets that may have an application that is not thread-safe, and with a
    pool a few threads are added for requests that do not use it.

    :param settings: those of the process; the application has been imported. Raises ``ValueError``, as `pools_in` does.
    """

    def __init__(self, settings: Settings) -> None:
        self._is_closed = False
        # Why further pools are not guarded.
        self.refusals: list[str] = []
        self._is_searching = settings["pool"] is None and settings["threads"] != 1
        # By their lanes.
        self.replicas: dict[str, FoundPool] = {}
        for lane in settings["lanes"]:
            if lane.pool is not None:
                self.replicas[lane.name] = _replica_of(lane)
        of_replicas = {id(pool.pool) for pool in self.replicas.values()}
        if self._is_searching:
            found = [pool for pool in find_pools() if id(pool.pool) not in of_replicas]
            self.found = [pool for pool in found if self._can_be_guarded(pool)]
            if of_replicas and len(self.found) > 1:
                raise ValueError(
                    f"a replica stands for one pool, but the application has {len(self.found)}: "
                    f"{'; '.join(map(str, self.found))}. Name them with --pool, that one first"
                )
        else:
            self.found = [pool for pool in pools_in(settings["pool"] or []) if id(pool.pool) not in of_replicas]
        # None: as many as each pool has connections.
        self.threads = settings["threads"]
        sizes = [pool.size for pool in self.found]
        if self.threads is None and not (sizes and all(sizes)):
            self.threads = max(sizes, default=0) or DEFAULT_THREADS

    def _can_be_guarded(self, pool: FoundPool) -> bool:
        try:
            return pool.size >= 0
        except ValueError as error:
            self.refusals.append(f"not guarded: {error}")
            return False

    def watch(self, add: Callable[[FoundPool], None]) -> None:
        """Call ``add``, in any thread, with each pool that the application makes later, unless the settings name some.

        If it fails, the application's own call does not.
        """

        def on_later(pool: FoundPool) -> None:
            if self._is_closed:
                return
            try:
                add(pool)
            except ValueError as error:
                logger.warning("pool: not guarded: %s", error)
            except Exception:
                logger.exception("a pool that was made later is not guarded")
            else:
                logger.info("pool: made later: %s", pool)

        if self._is_searching:
            watch_for_pools([*self.found, *self.replicas.values()], on_later)

    def close(self) -> None:
        """Stop watching: the process serves no more."""
        self._is_closed = True

    def lines(self) -> Iterator[str]:
        """What was found and what follows: a text for each pool."""
        for pool in self.found:
            yield f"{pool}: {_threads(self.threads or pool.size)}"
        if not self.found:
            how = "none found" if self._is_searching else "none"
            advice = " (--threads=N changes that; --pool=MODULE:ATTRIBUTE names a pool)" if self._is_searching else ""
            yield f"{how}: {_threads(self.threads)}{advice}"
        for name, pool in self.replicas.items():
            yield f"{pool}: a replica, for the lane {name}"


def _replica_of(lane: Lane) -> FoundPool:
    """The pool of a lane, which has it from now on: a function that makes it is called once. Raises ``ValueError``."""
    pools = pools_in(lane.pool)
    if len(pools) != 1:
        raise ValueError(
            f"lane {lane.name}: its pool must be one, not {len(pools)}; give the one of the replica itself"
        )
    lane.pool = pools[0]
    return pools[0]


def _threads(number: int | None) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def close_idle_connections() -> None:
    """Close those of all pools of this process, which does not serve; log those that fail to close."""
    for pool in find_pools():
        try:
            pool.kind.close_idle(pool.pool)
        except Exception as error:  # noqa: BLE001 - whatever the pool raises, this process needs it no more
            logger.warning("the idle connections of %s cannot be closed: %r", pool, error)
