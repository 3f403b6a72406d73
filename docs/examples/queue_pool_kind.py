"""What threadbridge needs to guard a `QueuePool`: a module that answers for it, and a guard.

Declared in the package's pyproject.toml:

    [project.entry-points."threadbridge.pools"]
    queue_pool = "queue_pool_kind"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from queue_pool import QueuePool

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.database.waiting_line import CountingLine

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
            ConnectionSettings(pool.connect, (), {}, takes_timeouts=False),
            [pool.connect.__module__],
            on_ask,
            **options,
        )
        self._pool = pool
        self._line = CountingLine(self, lambda: pool.size)
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
        return len(self._line.out)

    def count_out(self, connection: Any) -> None:
        self._line.out.add(id(connection))

    def count_in(self, connection: Any) -> None:
        self._line.leave(connection)

    def _guarded_get(self) -> Any:
        # 1. The route is learned, and a cancelled request is refused.
        request = self.ask()
        # 2. Wait here instead of in the pool, so that a cancelled request stops waiting.
        self._line.enter(request, None, TimeoutError)
        connection = None
        try:
            connection = self._get()
        finally:
            self._line.end_entering(connection)
        connection.is_idle = False
        # 3. From here on, the request's statements can be stopped.
        self.lend_to_current(connection)
        return connection

    def _connect_for_pool(self) -> Any:
        connection = GuardedConnection(self)
        # Lends it at once: connecting can be cut too.
        connection.driver = connection.make_for_current(self._connect)
        return connection

    def _guarded_put(self, connection: GuardedConnection) -> None:
        connection.is_idle = True
        # 4. Before the pool rolls back: no stop may hit that, or the next request's statement.
        self.end_borrows(connection.borrows)
        try:
            self._put(connection, discard=connection.must_close)
        finally:
            self._line.leave(connection)


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
