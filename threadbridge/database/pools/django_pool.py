"""psycopg's pool under one of Django's databases: requests wait for its connections here, so that they can be woken."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

from psycopg_pool import ConnectionPool, PoolTimeout

from threadbridge.crossing.current import current_or_none, is_cancelled
from threadbridge.database.guard import Guard
from threadbridge.database.pools.django_connection import HELD
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.database.waiting_line import WaitingLine

# Seconds for which a request waits for a connection that the pool is making before it looks whether it is cancelled.
INTERVAL = 0.1


class GuardedPool:
    """The guard's lock guards the counts and the waiting line. Both belong to the worker side."""

    def __init__(self, guard: Guard, pool: ConnectionPool[Any]) -> None:
        self._guard = guard
        self.size = pool.max_size
        self._line = WaitingLine(guard, self._has_free)
        # How many threads are about to get a connection.
        self._entering = 0
        # The ids of the connections that are handed out, and of those that were cut: instead of each of these, the pool
        # may make another one.
        self._out: set[int] = set()
        self._cut: set[int] = set()
        self._pool: ConnectionPool[Any] | None = None

    def hook(self, pool: ConnectionPool[Any]) -> None:
        """Wrap the pool's methods. Django makes another pool if its time zone changes."""
        with self._guard.lock:
            if pool is not self._pool:
                self.unhook()
                self._pool = pool
                pool.getconn = functools.partial(self._getconn, pool, pool.getconn)  # type: ignore[method-assign]
                pool.putconn = functools.partial(self._putconn, pool, pool.putconn)  # type: ignore[method-assign]

    def unhook(self) -> None:
        """Restore the pool's methods."""
        for name in ("getconn", "putconn"):
            with contextlib.suppress(AttributeError):
                delattr(self._pool, name)

    def become_copy(self) -> None:
        """See `Guard`. The parent has the connections and the pool's threads, so that the pool must not be closed."""
        self._line.clear()
        self._entering, self._out, self._cut = 0, set(), set()

    def replace(self, made: object) -> None:
        """Let the pool make another connection instead of one that was cut, and may never come back. Under the lock."""
        if id(made) in self._out and self._pool is not None:
            self._out.discard(id(made))
            self._cut.add(id(made))
            self._pool.resize(self._pool.min_size, self._pool.max_size + 1)
            self._guard.lock.notify_all()

    def _has_free(self) -> bool:
        return len(self._out) + self._entering < self.size

    def _getconn(self, pool: ConnectionPool[Any], getconn: Callable[[float], Any], timeout: float | None = None) -> Any:
        seconds = pool.timeout if timeout is None else timeout
        latest = time.monotonic() + seconds

        def wait() -> None:
            if not self._line.wait(latest - time.monotonic()):
                name = self._guard.name
                raise PoolTimeout(
                    f"all {self.size} connections of {name} are in use; none came back within {seconds:g} s"
                )

        with self._guard.lock:
            self._line.wait_turn(current_or_none(), wait)
            self._entering += 1
        made = None
        try:
            made = self._wait_for_pool(getconn, latest)
        finally:
            with self._guard.lock:
                self._entering -= 1
                if made is not None:
                    self._out.add(id(made))
                else:
                    self._guard.lock.notify_all()
        return made

    def _wait_for_pool(self, getconn: Callable[[float], Any], latest: float) -> Any:
        """A connection is free, or the pool's threads make one."""
        while True:
            left = latest - time.monotonic()
            try:
                return getconn(min(left, INTERVAL))
            except PoolTimeout:
                if is_cancelled():
                    raise self._guard.cancelled() from None
                if left <= INTERVAL:
                    raise

    def _putconn(self, pool: ConnectionPool[Any], putconn: Callable[[Any], None], made: Any) -> None:
        held: TrackedConnection | None = getattr(made, HELD, None)
        if held is not None:
            # Before the pool rolls back: that must be neither refused nor stopped.
            held.is_idle = True
            held.note_rollback()
            self._guard.end_borrows(held.borrows)
            if held.must_close:
                # Not by `close`, which may hand it back instead; then the pool makes another one.
                made.pgconn.finish()
        try:
            putconn(made)
        finally:
            with self._guard.lock:
                self._out.discard(id(made))
                if id(made) in self._cut:
                    self._cut.discard(id(made))
                    pool.resize(pool.min_size, pool.max_size - 1)
                self._guard.lock.notify_all()
