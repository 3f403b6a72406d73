"""The guard of a DBUtils ``PooledDB``, whose private members it uses; `dbutils_check` lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from dbutils import pooled_db

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import HeldConnection, borrow_of
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.dbutils_check import connection_settings, creator_module
from threadbridge.database.pools.dbutils_connection import DedicatedConnection, GuardedConnection
from threadbridge.database.pools.dbutils_cursor import GuardedCursor
from threadbridge.database.pools.kind import check_free
from threadbridge.database.replica import replica_of
from threadbridge.database.waiting_line import WaitingLine


class DBUtilsGuard(Guard):
    """Replaces the methods by which a live ``PooledDB`` hands out and takes back connections; closes its idle ones.

    The lock is PooledDB's condition; it guards the pool's own counts and lists, and the waiting line. Raises
    ``ValueError`` if the pool has another guard that is not closed.

    :param pool: a pool that `pool_size` has accepted.
    :param on_ask: called on the worker side with this guard and each request that asks for a connection.
    """

    def __init__(
        self,
        pool: Any,
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        check_free(pool.connection)
        self._pool = pool
        module = creator_module(pool)
        super().__init__(
            f"PooledDB of {module}",
            connection_settings(pool),
            [module],
            on_ask,
            lock=pool._lock,
            **options,
        )
        # If the creator is a function of the application's, the driver and its defaults are not known yet.
        self._defaults = self.defaults
        self._line = WaitingLine(self, self._has_free)
        with pool._lock:
            idle, pool._idle_cache[:] = list(pool._idle_cache), []
            if pool._maxshared:
                # Those in use are counted off when they come back.
                pool._shared_cache.clear()
            pool.connection = self._connection
            pool.cache = self._cache
            pool.steady_connection = lambda: self._connect(self._make())
            pool.unshare = self._unshare
            # PooledDB's own code waits by this when it hands out shared connections.
            pool._wait_lock = self._wait
        for steady in idle:
            steady.close()
        forks.copies(self)

    def become_copy(self) -> None:
        super().become_copy()
        pool = self._pool
        pool._lock = self.lock
        pool._idle_cache = []
        if pool._maxshared:
            pool._shared_cache = []
        pool._connections = 0
        self._line.clear()

    @property
    def size(self) -> int:
        return int(self._pool._maxconnections)

    @property
    def in_use(self) -> int:
        return int(self._pool._connections)

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached or that no connection is left."""
        return isinstance(error, pooled_db.TooManyConnectionsError) or super().is_outage(error)

    def is_fatal(self, error: Exception) -> bool:
        """See `Guard`; the pool's own ``isfatal`` must agree."""
        agrees = self._pool._isfatal
        return super().is_fatal(error) and (agrees is None or agrees(error))

    def stop_sharing(self, connection: HeldConnection) -> None:
        pool = self._pool
        if pool._maxshared:
            pool._shared_cache[:] = [shared for shared in pool._shared_cache if shared.con is not connection]

    def count_out(self, connection: HeldConnection) -> None:
        self._pool._connections += 1

    def count_in(self, connection: HeldConnection) -> None:
        self._pool._connections -= 1
        # All of them, as only the first in line may go on. PooledDB's own code waits too, for shared connections, and
        # where the application took the pool's method before there was a guard.
        self._pool._lock.notify_all()

    # Hand-out. Worker side, or a thread that the application has started.

    def hand_out_for(self, replica: Guard) -> bool:
        if not isinstance(replica, DBUtilsGuard):
            return False
        self._pool.connection = self._connection_of_either
        return True

    def _connection_of_either(self, shareable: bool = True) -> Any:
        replica = replica_of(current_or_none())
        if replica is None:
            return self._connection(shareable)
        assert isinstance(replica.guard, DBUtilsGuard)
        other = replica.guard._connection
        return replica.hand_out(lambda: other(shareable), lambda: self._connection(shareable))

    def _connection(self, shareable: bool = True) -> Any:
        request = self.ask()
        pool = self._pool
        if not (shareable and pool._maxshared):
            return self._dedicated(request)
        # One lock from the choice of the connection until it is lent to this request, so that no stop comes between.
        with pool._lock:
            handed_out = type(pool).connection(pool, shareable)
            if request is not None:
                self.lend(handed_out._con, request)
        return handed_out

    def _dedicated(self, request: TrackedRequest | None) -> Any:
        pool = self._pool
        with pool._lock:
            # Not its length, which takes a call.
            if self._line.line or not self._has_free():
                self._line.wait_turn(request, self._latest(request), pooled_db.TooManyConnectionsError)
            # The one that came back last: it is the least likely to have been closed by the server.
            is_idle = bool(pool._idle_cache)
            steady = pool._idle_cache.pop() if is_idle else self._make()
            if request is not None:
                self.lend(steady, request)
            pool._connections += 1
        try:
            # Outside the lock: a database that does not answer holds up only this request, and the connection can be
            # abandoned meanwhile.
            if is_idle:
                steady._ping_check()
            else:
                self._connect(steady)
            if steady.is_abandoned:
                # DBUtils hides it when a new attempt to connect fails.
                raise self.cancelled()
            return DedicatedConnection(pool, steady)
        except BaseException as error:
            self.note_failure(error)
            self._discard(steady)
            raise

    def _has_free(self) -> bool:
        pool = self._pool
        return not pool._maxconnections or pool._connections < pool._maxconnections

    def _wait(self) -> None:
        """Wait until a connection may have come back. Under the lock.

        Raises ``TooManyConnectionsError``, or `cancelled` as soon as the request is cancelled.
        """
        if not self._line.wait(self._latest(current_or_none())):
            raise pooled_db.TooManyConnectionsError

    def _latest(self, request: TrackedRequest | None) -> float | None:
        """Until when a thread waits for a connection: see `WaitingLine.wait`. Under the lock."""
        return None if self._pool._blocking else self._line.deadline_for(request)

    def _connect(self, steady: GuardedConnection) -> GuardedConnection:
        self._start_background()
        steady.connect()
        self.keep_control()
        return steady

    def _make(self) -> GuardedConnection:
        pool = self._pool
        options = (pool._creator, pool._maxusage, pool._setsession, pool._failures, pool._ping, True, self.is_fatal)
        return GuardedConnection(self, GuardedCursor, *options, *pool._args, **{**self._defaults, **pool._kwargs})

    # Hand-back. Any thread: a connection that the application forgot comes back when it is collected.

    def _unshare(self, shared: Any) -> None:
        if self.defer(lambda: self._unshare(shared), is_hand_back=True):
            return
        if isinstance(shared.con, GuardedConnection) and (borrow := borrow_of(shared.con, current_or_none())):
            self.end_borrows([borrow])
        type(self._pool).unshare(self._pool, shared)

    def _cache(self, steady: Any) -> None:
        # A deferred one is closed: a cursor that was forgotten with it may still have rows to fetch.
        if self.must_not_wait(is_hand_back=True):
            self.leave_to_background(lambda: self._discard(steady))
            return
        pool = self._pool
        # One that was handed out before this guard existed is closed.
        is_mine = isinstance(steady, GuardedConnection) and steady.guard is self
        if isinstance(steady, GuardedConnection):
            steady.clean(force=pool._reset)
            steady.guard.end_borrows(steady.borrows)
        with pool._lock:
            has_room = not pool._maxcached or len(pool._idle_cache) < pool._maxcached
            if is_mine and not steady.must_close and has_room:
                pool._idle_cache.append(steady)
                self.count_in(steady)
                return
        try:
            steady.close()
        finally:
            if not (isinstance(steady, GuardedConnection) and steady.is_abandoned):
                with pool._lock:
                    self.count_in(steady)

    def _discard(self, steady: Any) -> None:
        steady.must_close = True
        self._cache(steady)
