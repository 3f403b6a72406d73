"""The guard around a DBUtils ``PooledDB``: which request holds which connection, and how their queries are stopped.

The only module that knows DBUtils. What it touches of DBUtils' privates is listed in `_PRIVATE`.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from dbutils.pooled_db import PooledDB, PooledDedicatedDBConnection, TooManyConnectionsError
from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.current import RunningRequest, current_or_none
from threadbridge.database import ConnectionSettings, Database, database_of
from threadbridge.stopper import Stopper

# DBUtils offers no other way to count, hand out and take back connections without network traffic under its lock.
_PRIVATE = (
    *("_args", "_blocking", "_connections", "_creator", "_failures", "_idle_cache", "_isfatal", "_kwargs", "_lock"),
    *("_maxcached", "_maxconnections", "_maxshared", "_maxusage", "_ping", "_reset", "_setsession", "_wait_lock"),
)


def pool_size(pool: object) -> int:
    """How many connections a ``PooledDB`` hands out at once; 0 when it is unlimited.

    Raises ``ValueError`` when the object is no ``PooledDB`` that this version of threadbridge knows.
    """
    if not isinstance(pool, PooledDB):
        raise ValueError(f"pool={pool!r} is not a PooledDB of DBUtils; give the pool object itself, or leave pool out")
    missing = [name for name in _PRIVATE if not hasattr(pool, name)]
    if missing:
        raise ValueError(
            f"this PooledDB (DBUtils {pool.version}) has no {', '.join(missing)}; this version of threadbridge was "
            "made for DBUtils 3.1 and 3.2: install one of these, or leave pool out and give threads="
        )
    size: int = pool._maxconnections
    return size


class Borrow:
    """A connection in the hands of a request.

    The lock orders the worker, which begins and ends statements and hands the connection back, and the stopper.
    """

    def __init__(self, connection: GuardedConnection, request: RunningRequest) -> None:
        self.connection = connection
        self.request = request
        self.executing = False
        self.returned = False
        self.tried = False
        self.lock = threading.Lock()
        self.take_back: Callable[[], None] = lambda: None

    def execute(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a statement, unless the request is cancelled. Worker side."""
        with self.lock:
            self.executing = True
        try:
            # Marked before this look: the stopper, which goes on while a statement is marked, comes after the mark or
            # has cancelled the request before it.
            self.refuse_if_cancelled()
            return method(*args, **kwargs)
        finally:
            with self.lock:
                self.executing = False

    def refuse_if_cancelled(self) -> None:
        """Raise the driver's error for a stopped statement when nobody waits for the request. Worker side."""
        if self.request.cancelled:
            raise self.connection.guard.cancelled()

    def stop(self) -> bool:
        """Stop what runs on the connection; whether to look again. The stopper's thread.

        Raises `StopFailed`.
        """
        with self.lock:
            if self.returned or (self.tried and not self.executing):
                return False
            self.tried = True
            self.connection.stop()
            return True

    def end(self) -> None:
        """The connection goes back, after a stop that is under way. Any thread."""
        with self.lock:
            self.returned = True
        self.take_back()


class GuardedCursor(SteadyDBCursor):  # type: ignore[misc]
    """A cursor that begins no statement for a cancelled request."""

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        if name.startswith(("execute", "call")):
            borrow = self._con.borrow_of(current_or_none())
            if borrow is not None:
                return lambda *args, **kwargs: borrow.execute(attribute, *args, **kwargs)
        return attribute


class GuardedConnection(SteadyDBConnection):  # type: ignore[misc]
    """A connection that knows for which requests it is in use: one, or several if the pool shares connections."""

    def __init__(self, guard: PoolGuard, *args: Any, **kwargs: Any) -> None:
        self.guard = guard
        self.borrows: list[Borrow] = []
        # One on which a statement was stopped is closed when it comes back, and never handed out again: no stop can
        # come late and hit somebody else's statement.
        self.spoilt = False
        # The driver's connections with what the database calls them; two while DBUtils replaces a broken one.
        self._made: deque[tuple[Any, Any]] = deque(maxlen=2)
        super().__init__(*args, **kwargs)

    def _create(self) -> Any:
        made = super()._create()
        if self.guard.database is not None:
            try:
                self._made.append((made, self.guard.database.identify(made)))
            except BaseException:
                made.close()
                raise
        return made

    def cursor(self, *args: Any, **kwargs: Any) -> GuardedCursor:
        """See `SteadyDBConnection`."""
        return GuardedCursor(self, *args, **kwargs)

    def commit(self) -> None:
        """See `SteadyDBConnection`; what a cancelled request has done is not committed."""
        borrow = self.borrow_of(current_or_none())
        if borrow is not None:
            borrow.refuse_if_cancelled()
        super().commit()

    def borrow_of(self, request: RunningRequest | None) -> Borrow | None:
        """The request's hold on this connection, if it has one. Worker side."""
        if request is not None:
            for borrow in self.borrows:
                if borrow.request is request:
                    return borrow
        return None

    def stop(self) -> None:
        """Stop the statement that runs on this connection. The stopper's thread. Raises `StopFailed`."""
        # A connection that several requests share is left alone: the statement may be another's.
        if self.guard.database is not None and len(self.borrows) == 1:
            self.spoilt = True
            for made, identity in list(self._made):
                self.guard.database.stop(made, identity)


class PoolGuard:
    """Takes the place of a live ``PooledDB``'s hand-out and hand-back; the application notices nothing.

    :param pool: see `pool_size`, which has to be called before.
    :param on_ask: called on the worker side with a request that asks for a connection.

    The connections that the pool has ready are closed, to be made again under the guard when they are needed. All state
    is guarded by the pool's own condition, which nobody holds while the network is waited for.
    """

    def __init__(self, pool: Any, on_ask: Callable[[RunningRequest], None] = lambda request: None) -> None:
        creator = pool._creator
        connect = getattr(creator, "connect", creator)
        settings = ConnectionSettings(connect, pool._args, pool._kwargs)
        driver = getattr(creator, "__name__" if connect is not creator else "__module__", "")
        self.database: Database | None = database_of(driver.partition(".")[0], settings)
        self._pool = pool
        self._on_ask = on_ask
        self._stopper = Stopper()
        # How many connections each request holds.
        self._held: Counter[RunningRequest] = Counter()
        pool.close()
        # Public methods, which PooledDB, and the connections it hands out, call on the pool itself...
        pool.connection = self._connection
        pool.cache = self._cache
        pool.steady_connection = self._steady_connection
        pool.unshare = self._unshare
        # ...and a private one: shared connections are handed out by PooledDB's own code, which waits by it.
        pool._wait_lock = self._wait

    def cancelled(self) -> Exception:
        """The error for a statement that is not begun because nobody waits for it."""
        if self.database is not None:
            return self.database.cancelled()
        return ConnectionAbortedError("nobody waits for this request any more")

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached or has no connection left."""
        return isinstance(error, TooManyConnectionsError) or (
            self.database is not None and self.database.is_outage(error)
        )

    def close(self) -> None:
        """End the stopper's thread. Any thread."""
        self._stopper.close()

    # Hand-out. Worker side, or a thread that the application has started.

    def _connection(self, shareable: bool = True) -> Any:
        request = current_or_none()
        if request is not None:
            self._on_ask(request)
            if request.cancelled:
                raise self.cancelled()
        pool = self._pool
        if shareable and pool._maxshared:
            handed_out = type(pool).connection(pool, shareable)
            steady = handed_out._con
        else:
            steady = self._take()
            handed_out = PooledDedicatedDBConnection(pool, steady)
        if request is not None:
            self._lend(steady, request)
        return handed_out

    def _take(self) -> GuardedConnection:
        pool = self._pool
        with pool._lock:
            while pool._maxconnections and pool._connections >= pool._maxconnections:
                self._wait()
            pool._connections += 1
            # The one that came back last: it is the least likely to have been closed by the server.
            steady: GuardedConnection | None = pool._idle_cache.pop() if pool._idle_cache else None
        try:
            if steady is None:
                steady = self._steady_connection()
            else:
                steady._ping_check()
        except BaseException:
            self._come_back(None)
            raise
        return steady

    def _steady_connection(self) -> GuardedConnection:
        pool = self._pool
        return GuardedConnection(
            self,
            pool._creator,
            pool._maxusage,
            pool._setsession,
            pool._failures,
            pool._ping,
            True,
            self._is_fatal,
            *pool._args,
            **pool._kwargs,
        )

    def _is_fatal(self, error: Exception) -> bool:
        """Whether DBUtils is to replace the connection and run the statement again."""
        request = current_or_none()
        if request is not None and request.cancelled:
            return False
        if self.database is not None and self.database.is_statement_error(error):
            return False
        asked = self._pool._isfatal
        return asked is None or asked(error)

    def _wait(self) -> None:
        """Wait, under the pool's condition, until a connection may have come back.

        A request that holds none waits even where the pool would raise `TooManyConnectionsError`: some other request
        will hand one back. One that holds a connection already may be waiting for itself. Raises the driver's error for
        a stopped statement as soon as the request is cancelled.
        """
        pool = self._pool
        request = current_or_none()
        if not pool._blocking and (request is None or self._held[request]):
            raise TooManyConnectionsError
        take_back = request.on_cancel(self._wake_all) if request is not None else None
        try:
            if request is None or not request.cancelled:
                pool._lock.wait()
        finally:
            if take_back is not None:
                take_back()
        if request is not None and request.cancelled:
            # The notice may have been meant for another that waits.
            pool._lock.notify()
            raise self.cancelled()

    def _wake_all(self) -> None:
        with self._pool._lock:
            self._pool._lock.notify_all()

    def _lend(self, steady: GuardedConnection, request: RunningRequest) -> None:
        borrow = Borrow(steady, request)
        with self._pool._lock:
            steady.borrows.append(borrow)
            self._held[request] += 1
        borrow.take_back = request.on_cancel(lambda: self._stopper.stop(borrow))

    # Hand-back. Any thread: a connection that was forgotten comes back when it is collected.

    def _unshare(self, shared: Any) -> None:
        borrow = shared.con.borrow_of(current_or_none())
        if borrow is not None:
            self._end(borrow)
        type(self._pool).unshare(self._pool, shared)

    def _cache(self, steady: GuardedConnection) -> None:
        # One that was handed out before there was a guard is let go.
        keep = isinstance(steady, GuardedConnection)
        if keep:
            for borrow in list(steady.borrows):
                self._end(borrow)
            pool = self._pool
            keep = not steady.spoilt and (not pool._maxcached or len(pool._idle_cache) < pool._maxcached)
        try:
            if keep:
                steady._reset(force=self._pool._reset)
            else:
                steady.close()
        finally:
            self._come_back(steady if keep else None)

    def _end(self, borrow: Borrow) -> None:
        borrow.end()
        with self._pool._lock:
            borrow.connection.borrows.remove(borrow)
            self._held[borrow.request] -= 1
            if not self._held[borrow.request]:
                del self._held[borrow.request]

    def _come_back(self, steady: GuardedConnection | None) -> None:
        pool = self._pool
        with pool._lock:
            if steady is not None:
                pool._idle_cache.append(steady)
            pool._connections -= 1
            pool._lock.notify()
