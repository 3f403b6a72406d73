"""The guard of a ``psycopg_pool.ConnectionPool`` or ``NullConnectionPool``. It uses no private members."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Unpack

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout, TooManyRequests

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, is_cancelled
from threadbridge.database.borrow import HeldConnection, borrow_of
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.psycopg_connection import guarded
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.database.waiting_line import WaitingLine

# Seconds for which a request waits for the pool itself at a time. That wait cannot be interrupted; it lasts only while
# the pool has fewer connections than it may have, and makes one.
SLICE = 0.1


class _Cancelled(BaseException):
    """Ends a hand-out whose request is cancelled: after an ``Exception``, the pool would try its next connection."""


class _ThisThread(threading.local):
    # The request for which the thread is getting a connection.
    request: TrackedRequest | None = None


class PoolConnection(TrackedConnection):
    """A connection of a pool; the guard's lock guards ``is_cut``."""

    connection: Callable[[], Any]
    # Whether the pool no longer counts it.
    is_cut = False


class PsycopgPoolGuard(Guard):
    """Extends the class of a pool's connections, and its methods ``getconn`` and ``putconn``.

    Requests wait in the guard's line, so that the pool's statistics count only those that wait for a connection to be
    made. ``COPY`` and ``stream`` are stopped, but not recorded. Two-phase commits (``tpc_commit``) are not refused.
    After a fork, the pool is of no use in the child, as psycopg_pool says. Raises ``ValueError`` for a pool that
    another guard has.

    :param rerun: has no effect: psycopg runs no statement again.
    :param resets_sessions: has no effect: the pool's parameter ``reset`` is there for that.
    """

    def __init__(
        self,
        pool: ConnectionPool[Any],
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        if isinstance(getattr(pool.getconn, "__self__", None), PsycopgPoolGuard):
            raise ValueError("this pool belongs to another Bridge already; give both applications to one, or two pools")
        # Functions give them again for each connection.
        args = ("" if callable(pool.conninfo) else pool.conninfo,)
        kwargs = {} if callable(pool.kwargs) else dict(pool.kwargs or {})
        super().__init__(
            describe(pool),
            threading.Condition(),
            ConnectionSettings(self._connect_apart, args, kwargs),
            ["psycopg"],
            on_ask,
            **options,
        )
        self._pool = pool
        self._line = WaitingLine(self, self._has_free)
        self._this_thread = _ThisThread()
        # The connections that are handed out, and how many threads are about to get one.
        self._out: set[Any] = set()
        self._entering = 0
        # How many connections the pool has made in place of those that were cut.
        self._replaced = 0
        self._class = pool.connection_class
        self._getconn, self._putconn = pool.getconn, pool.putconn
        pool.connection_class = guarded(self._class, self)
        pool.getconn = self._hand_out  # type: ignore[method-assign]
        pool.putconn = self._take_back  # type: ignore[assignment, method-assign]
        forks.copies(self)

    def close(self) -> None:
        super().close()
        with contextlib.suppress(AttributeError):
            del self._pool.getconn, self._pool.putconn
        self._pool.connection_class = self._class

    def become_copy(self) -> None:
        super().become_copy()
        self._line.clear()
        self._out, self._entering = set(), 0

    @property
    def size(self) -> int:
        return max(self._pool.max_size - self._replaced, 0)

    @property
    def in_use(self) -> int:
        return len(self._out)

    def count_out(self, connection: HeldConnection) -> None:
        """See `Guard`. One that was cut no longer belongs to the pool, even if its thread came back."""

    def count_in(self, connection: HeldConnection) -> None:
        """See `Guard`. The pool makes another connection instead, and counts the one that was cut as well."""
        if isinstance(connection, PoolConnection) and not connection.is_cut:
            connection.is_cut = True
            self._replaced += 1
            self._out.discard(connection.connection())
            self.lock.notify_all()
            # Elsewhere, as a NullConnectionPool connects under the lock that this needs.
            self._background.do(self._grow)

    def _grow(self) -> None:
        pool = self._pool
        more = 0 if isinstance(pool, NullConnectionPool) else 1
        pool.resize(pool.min_size + more, pool.max_size + 1)

    # New connections: in the pool's threads, or in those that want one.

    def make(self, connect: Callable[..., Any], conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Connect. Raises what the driver raises."""
        defaults = {} if self._database is None else self._database.defaults
        held = PoolConnection(self)
        # In the pool, or in its function ``configure``.
        held.is_idle = True
        connection = held.make(lambda: connect(conninfo, **{**defaults, **kwargs}))
        held.use()
        held.connection = weakref.ref(connection)
        connection.threadbridge_held = held
        self.keep_control()
        return connection

    def _connect_apart(self, conninfo: str, **kwargs: Any) -> Any:
        pool = self._pool
        given: Any = pool.kwargs() if callable(pool.kwargs) else {}
        return self._class.connect(pool.conninfo() if callable(pool.conninfo) else conninfo, **{**given, **kwargs})

    # Hand-out. Worker side, or a thread that the application has started.

    def _hand_out(self, timeout: float | None = None) -> Any:
        request = self.ask()
        timeout = self._pool.timeout if timeout is None else timeout
        latest = time.monotonic() + timeout
        self._enter(request, timeout, latest)
        connection = None
        self._this_thread.request = request
        try:
            connection = self._get(request, timeout, latest)
        finally:
            self._this_thread.request = None
            with self.lock:
                self._entering -= 1
                if connection is None:
                    self.lock.notify_all()
                else:
                    self._out.add(connection)
                    connection.threadbridge_held.is_idle = False
                    if request is not None:
                        self.lend(connection.threadbridge_held, request)
        return connection

    def _enter(self, request: TrackedRequest | None, timeout: float, latest: float) -> None:
        pool = self._pool

        def wait() -> None:
            if not self._line.wait(latest - time.monotonic()):
                raise _timeout(timeout)

        with self.lock:
            if pool.max_waiting and len(self._line) >= pool.max_waiting:
                raise TooManyRequests(f"the pool {pool.name!r} has already {len(self._line)} requests waiting")
            self._line.wait_turn(request, wait)
            self._entering += 1

    def _has_free(self) -> bool:
        size = self._pool.max_size - self._replaced
        # A NullConnectionPool may have no limit.
        return self._pool.max_size == 0 or len(self._out) + self._entering < size

    def _get(self, request: TrackedRequest | None, timeout: float, latest: float) -> Any:
        is_interruptible = request is not None and not isinstance(self._pool, NullConnectionPool)
        while True:
            rest = latest - time.monotonic()
            try:
                connection: Any = self._getconn(min(rest, SLICE) if is_interruptible else rest)
            except PoolTimeout:
                if is_cancelled():
                    raise self.cancelled() from None
                if time.monotonic() >= latest:
                    raise _timeout(timeout) from None
                continue
            except _Cancelled:
                raise self.cancelled() from None
            held = getattr(connection, "threadbridge_held", None)
            if held is not None and held.guard is self and not held.must_close:
                return connection
            # Made before this guard, or stopped while the pool checked it.
            connection.pgconn.finish()
            self._putconn(connection)

    def check(self, held: PoolConnection, call: Callable[[], Any]) -> Any:
        """Execute a statement of the pool's own: for a request that waits for the answer, it can be stopped."""
        request = self._this_thread.request
        if request is None:
            return call()
        with self.lock:
            borrow = borrow_of(held, request) or self.lend(held, request)
        try:
            return borrow.execute(call)
        except Exception:
            if request.cancelled:
                raise _Cancelled from None
            raise
        finally:
            self.end_borrows([borrow])

    # Hand-back.

    def _take_back(self, connection: Any) -> None:
        held: PoolConnection | None = getattr(connection, "threadbridge_held", None)
        if held is None or held.guard is not self:
            self._putconn(connection)
            return
        # Before the pool rolls back: that must be neither refused nor stopped.
        held.is_idle = True
        self.end_borrows(held.borrows)
        held.note_rollback()
        if held.must_close:
            connection.pgconn.finish()
        try:
            if not held.is_cut:
                self._putconn(connection)
        finally:
            with self.lock:
                self._out.discard(connection)
                self.lock.notify_all()


def describe(pool: ConnectionPool[Any]) -> str:
    """The pool, for operators: without its password."""
    given: dict[str, Any] = {}
    with contextlib.suppress(Error):
        given.update({} if callable(pool.conninfo) else conninfo_to_dict(pool.conninfo or ""))
    given.update({} if callable(pool.kwargs) else pool.kwargs or {})
    where = [f"{name}={given[name]}" for name in ("host", "port", "dbname", "user") if name in given]
    return " ".join([f"{type(pool).__name__} {pool.name}", *where])


def _timeout(seconds: float) -> PoolTimeout:
    # The pool's own text.
    return PoolTimeout(f"couldn't get a connection after {seconds:.2f} sec")
