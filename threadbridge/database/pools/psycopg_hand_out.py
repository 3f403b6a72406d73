"""How a pool of psycopg's hands out connections under a guard: its own, or that of one of Django's databases."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

from psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout, TooManyRequests

from threadbridge.crossing.current import current_or_none, is_cancelled
from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.database.waiting_line import CountingLine

# The attribute of a connection of the pool that refers to its `TrackedConnection`.
HELD = "threadbridge_held"
# Seconds for which a request waits for the pool itself at a time. That wait cannot be interrupted; it lasts only while
# the pool has fewer connections than it may have, and makes one.
SLICE = 0.1


class HandOut:
    """Makes requests wait here instead of in the pool, so that they can be woken. The guard's lock guards the state.

    So the pool's statistics count only those that wait for a connection to be made.

    :param accepts: whether a connection can be handed out; if not, the pool makes another one.
    """

    def __init__(
        self, guard: Guard, pool: ConnectionPool[Any], accepts: Callable[[Any], bool] = lambda connection: True
    ) -> None:
        self._guard = guard
        self._accepts = accepts
        self.line = CountingLine(guard, self._room)
        self._use(pool)

    def _use(self, pool: ConnectionPool[Any]) -> None:
        self.pool = pool
        self._getconn, self._putconn = pool.getconn, pool.putconn
        # How many connections the pool has made in place of those that were cut.
        self._replaced = 0

    def wrap(self, getconn: Callable[..., Any] | None = None) -> None:
        """Replace the pool's methods; ``getconn``, if given, calls `get`."""
        self.pool.getconn = getconn or self.get  # type: ignore[method-assign]
        self.pool.putconn = self.put  # type: ignore[method-assign]

    def follow(self, pool: ConnectionPool[Any]) -> None:
        """Wrap this pool instead, if it is another one: Django makes one when its time zone changes."""
        with self._guard.lock:
            if pool is not self.pool:
                self.unwrap()
                self._use(pool)
                self.line.out.clear()
                self.wrap()

    def unwrap(self) -> None:
        """Restore the pool's methods."""
        for name in ("getconn", "putconn"):
            with contextlib.suppress(AttributeError):
                delattr(self.pool, name)

    @property
    def size(self) -> int:
        """How many connections the pool hands out at once; 0: unlimited."""
        return max(self.pool.max_size - self._replaced, 0)

    def _room(self) -> float:
        return self.pool.max_size - self._replaced if self.pool.max_size else math.inf

    def get(self, timeout: float | None = None) -> Any:
        """See ``ConnectionPool.getconn``. Worker side, or a thread that the application has started."""
        pool, request = self.pool, current_or_none()
        seconds = pool.timeout if timeout is None else timeout
        latest = time.monotonic() + seconds
        # The errors have the pool's own texts.
        too_late = functools.partial(PoolTimeout, f"couldn't get a connection after {seconds:.2f} sec")
        with self._guard.lock:
            if pool.max_waiting and len(self.line) >= pool.max_waiting:
                raise TooManyRequests(f"the pool {pool.name!r} has already {len(self.line)} requests waiting")
            self.line.enter(request, latest, too_late)
        connection = None
        try:
            is_interruptible = request is not None and not isinstance(pool, NullConnectionPool)
            connection = self._get(SLICE if is_interruptible else math.inf, latest, too_late)
        finally:
            self.line.end_entering(connection)
        return connection

    def _get(self, longest: float, latest: float, too_late: Callable[[], Exception]) -> Any:
        while True:
            try:
                connection = self._getconn(min(latest - time.monotonic(), longest))
            except PoolTimeout:
                if is_cancelled():
                    raise self._guard.cancelled() from None
                if time.monotonic() >= latest:
                    raise too_late() from None
                continue
            except TooManyRequests:
                # The pool counts requests that have given up, such as this one, until it has a connection for one.
                with self._guard.lock:
                    self.line.wait(min(latest, time.monotonic() + SLICE))
                continue
            if self._accepts(connection):
                return connection
            connection.pgconn.finish()
            self._putconn(connection)

    def put(self, conn: Any) -> None:
        """See ``ConnectionPool.putconn``. Any thread that may wait."""
        held: TrackedConnection | None = getattr(conn, HELD, None)
        if held is not None:
            # Before the pool rolls back: that must be neither refused nor stopped.
            held.is_idle = True
            self._guard.end_borrows(held.borrows)
            held.note_rollback()
            if held.must_close:
                # Not by `close`, which may hand it back instead; then the pool makes another one.
                conn.pgconn.finish()
        try:
            if held is None or not held.is_cut:
                self._putconn(conn)
        finally:
            self.line.leave(conn)

    def replace(self, held: TrackedConnection, connection: object) -> None:
        """Let the pool make another connection instead of one that was cut, and may never come back. Under the lock."""
        if id(connection) in self.line.out:
            held.is_cut = True
            self.line.leave(connection)
            if self.pool.max_size:
                self._replaced += 1
                # Elsewhere, as a NullConnectionPool connects under the lock that this needs.
                self._guard.do_later(functools.partial(self._grow, self.pool))

    def _grow(self, pool: ConnectionPool[Any]) -> None:
        more = 0 if isinstance(pool, NullConnectionPool) else 1
        pool.resize(pool.min_size + more, pool.max_size + 1)
        with self._guard.lock:
            self._guard.lock.notify_all()
