"""The guard of a ``psycopg_pool.ConnectionPool`` or ``NullConnectionPool``."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, Unpack

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import HeldConnection, borrow_of
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.kind import check_free, check_names
from threadbridge.database.pools.psycopg_connection import guarded
from threadbridge.database.pools.psycopg_hand_out import HELD, HandOut
from threadbridge.database.replica import replica_of
from threadbridge.database.tracked_connection import TrackedConnection


class _Cancelled(BaseException):
    """Ends a hand-out whose request is cancelled: after an ``Exception``, the pool would try its next connection."""


class _ThisThread(threading.local):
    # The request for which the thread is getting a connection.
    request: TrackedRequest | None = None


class PoolConnection(TrackedConnection):
    """A connection of a pool."""

    connection: Callable[[], Any]


class PsycopgPoolGuard(Guard):
    """Extends the class of a pool's connections, and its methods ``getconn`` and ``putconn``.

    ``COPY`` and ``stream`` are stopped, but not recorded. Two-phase commits (``tpc_commit``) are not refused. After a
    fork, the pool is of no use in the child, as psycopg_pool says. Raises ``ValueError`` for a pool that another guard
    has, or of an unknown version.

    :param rerun: has no effect: psycopg runs no statement again.
    :param resets_sessions: has no effect: the pool's parameter ``reset`` is there for that.
    """

    def __init__(
        self,
        pool: ConnectionPool[Any],
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        check_free(pool.getconn)
        check(pool)
        # Functions give them again for each connection.
        args = ("" if callable(pool.conninfo) else pool.conninfo,)
        kwargs = {} if callable(pool.kwargs) else dict(pool.kwargs or {})
        settings = ConnectionSettings(self._connect_apart, args, kwargs)
        super().__init__(describe(pool), settings, ["psycopg"], on_ask, **options)
        self._pool = pool
        self._this_thread = _ThisThread()
        self._class = pool.connection_class
        pool.connection_class = guarded(self._class, self)
        self._hand_out = HandOut(self, pool, self._is_usable)
        self._hand_out.wrap(self._getconn)
        forks.copies(self)

    def close(self) -> None:
        super().close()
        self._hand_out.unwrap()
        self._pool.connection_class = self._class

    def become_copy(self) -> None:
        super().become_copy()
        self._hand_out.line.clear()

    @property
    def size(self) -> int:
        return self._hand_out.size

    @property
    def in_use(self) -> int:
        return len(self._hand_out.line.out)

    def count_in(self, connection: HeldConnection) -> None:
        if isinstance(connection, PoolConnection):
            self._hand_out.replace(connection, connection.connection())

    # New connections: in the pool's threads, or in those that want one.

    def make(self, connect: Callable[..., Any], conninfo: str, kwargs: dict[str, Any]) -> Any:
        """Connect. Raises what the driver raises."""
        held = PoolConnection(self)
        # In the pool, or in its function ``configure``.
        held.is_idle = True
        connection = held.make(lambda: connect(conninfo, **{**self.defaults, **kwargs}))
        held.use()
        held.connection = weakref.ref(connection)
        setattr(connection, HELD, held)
        self.keep_control()
        return connection

    def _connect_apart(self, conninfo: str, **kwargs: Any) -> Any:
        pool = self._pool
        given: Any = pool.kwargs() if callable(pool.kwargs) else {}
        return self._class.connect(pool.conninfo() if callable(pool.conninfo) else conninfo, **{**given, **kwargs})

    # Hand-out. Worker side, or a thread that the application has started.

    def hand_out_for(self, replica: Guard) -> bool:
        if not isinstance(replica, PsycopgPoolGuard):
            return False
        pool: Any = self._pool
        pool.getconn, pool.putconn = self._getconn_of_either, self._putconn_of_either
        return True

    def _getconn_of_either(self, timeout: float | None = None) -> Any:
        replica = replica_of(current_or_none())
        if replica is None:
            return self._getconn(timeout)
        assert isinstance(replica.guard, PsycopgPoolGuard)
        other = replica.guard._getconn
        return replica.hand_out(lambda: other(timeout), lambda: self._getconn(timeout))

    def _putconn_of_either(self, conn: Any) -> None:
        held: PoolConnection | None = getattr(conn, HELD, None)
        guard = self if held is None else held.guard
        assert isinstance(guard, PsycopgPoolGuard)
        guard._hand_out.put(conn)

    def _getconn(self, timeout: float | None = None) -> Any:
        self._this_thread.request = self.ask()
        try:
            connection = self._hand_out.get(timeout)
        except _Cancelled:
            raise self.cancelled() from None
        finally:
            self._this_thread.request = None
        held: PoolConnection = connection.threadbridge_held
        held.is_idle = False
        self.lend_to_current(held)
        return connection

    def _is_usable(self, connection: Any) -> bool:
        """Whether it was made by this guard, and not stopped while the pool checked it."""
        held: PoolConnection | None = getattr(connection, HELD, None)
        return held is not None and held.guard is self and not held.must_close

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


def check(pool: ConnectionPool[Any]) -> None:
    """Raise ``ValueError`` if psycopg_pool lacks something that is used."""
    # What the pool calls to test a connection, for `advice_on_keeping`. The guard itself needs nothing private.
    check_names("psycopg_pool", "version 3", {pool: "_check"})


def describe(pool: ConnectionPool[Any]) -> str:
    """The pool, for operators: without its password."""
    given: dict[str, Any] = {}
    with contextlib.suppress(Error):
        given.update({} if callable(pool.conninfo) else conninfo_to_dict(pool.conninfo or ""))
    given.update({} if callable(pool.kwargs) else pool.kwargs or {})
    where = [f"{name}={given[name]}" for name in ("host", "port", "dbname", "user") if name in given]
    return " ".join([f"{type(pool).__name__} {pool.name}", *where])
