"""What threadbridge needs to guard a `QueuePool`: a module that answers for it, and a guard.

Declared in the package's pyproject.toml:

    [project.entry-points."threadbridge.pools"]
    queue_pool = "queue_pool_kind"
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from queue_pool import QueuePool

from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.database.waiting_line import WaitingLine

# The module: see `threadbridge.database.pools.kind.PoolKind`.


def pools_of(value: Any) -> Mapping[str, Any]:
    return {"": value} if isinstance(value, QueuePool) else {}


def size(pool: Any) -> int:
    return int(pool.size)


def describe(pool: Any) -> str:
    return f"QueuePool, {pool.size} connections"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return QueuePoolGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    """Nothing tells that a pool is made: those that exist when the application has been imported are guarded."""


def close_idle(pool: Any) -> None:
    """Its queue is private."""


# The guard.


class QueuePoolGuard(Guard):
    """Replaces the pool's `get` and `put`; what they hand out are `GuardedConnection`."""

    def __init__(self, pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> None:
        super().__init__(
            describe(pool),
            threading.Condition(),
            ConnectionSettings(pool.connect, (), {}, takes_timeouts=False),
            [pool.connect.__module__],
            on_ask,
            **options,
        )
        self._pool = pool
        self._line = WaitingLine(self, lambda: self._handed_out < pool.size)
        self._handed_out = 0
        self._get, self._put = pool.get, pool.put
        self._connect = pool.connect
        pool.connect = self._connect_for_pool
        pool.get = self._guarded_get
        pool.put = self._guarded_put

    @property
    def size(self) -> int:
        return self._pool.size

    @property
    def in_use(self) -> int:
        return self._handed_out

    def count_out(self, connection: Any) -> None:
        self._handed_out += 1

    def count_in(self, connection: Any) -> None:
        self._handed_out -= 1
        self.lock.notify_all()

    def _guarded_get(self) -> Any:
        # 1. The route is learned, and a cancelled request is refused.
        request = self.ask()
        with self.lock:
            # 2. Wait here instead of in the pool, so that a cancelled request stops waiting.
            self._line.wait_turn(request, self._wait)
            self._handed_out += 1
        try:
            connection: GuardedConnection = self._get()
        except BaseException:
            with self.lock:
                self.count_in(None)
            raise
        connection.is_idle = False
        if request is not None and not connection.borrows:
            with self.lock:
                # 3. From here on, the request's statements can be stopped.
                self.lend(connection, request)
        return connection

    def _wait(self) -> None:
        self._line.wait(None)

    def _connect_for_pool(self) -> Any:
        connection = GuardedConnection(self)
        request = current_or_none()
        if request is not None:
            with self.lock:
                # Connecting can be cut too.
                self.lend(connection, request)
        try:
            connection.driver = connection.make(self._connect)
        except BaseException:
            self.end_borrows(connection.borrows)
            raise
        connection.use()
        return connection

    def _guarded_put(self, connection: GuardedConnection) -> None:
        connection.is_idle = True
        # 4. Before the pool rolls back: no stop may hit that, or the next request's statement.
        self.end_borrows(connection.borrows)
        try:
            self._put(connection, discard=connection.must_close)
        finally:
            with self.lock:
                # One that was cut no longer counts.
                if not connection.is_abandoned:
                    self.count_in(connection)


class GuardedConnection(TrackedConnection):
    """A driver's connection whose statements are recorded, and refused once the request is cancelled."""

    driver: Any = None

    def cursor(self, *args: Any, **kwargs: Any) -> GuardedCursor:
        return GuardedCursor(self, self.driver.cursor(*args, **kwargs))

    def commit(self) -> None:
        self.commit_by(self.driver.commit)

    def rollback(self) -> None:
        self.roll_back_by(self.driver.rollback)

    def close(self) -> None:
        self.note_rollback()
        self.driver.close()


class GuardedCursor:
    """A driver's cursor."""

    def __init__(self, connection: GuardedConnection, cursor: Any) -> None:
        self._connection = connection
        self._cursor = cursor

    def execute(self, sql: str, *args: Any) -> Any:
        return self._connection.execute(sql, self._cursor, self._cursor.execute, sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self._connection.execute(sql, self._cursor, self._cursor.executemany, sql, *args, is_many=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)
