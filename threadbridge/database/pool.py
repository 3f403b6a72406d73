"""The guard around a DBUtils ``PooledDB``: which request holds which connection, and how their queries are stopped.

This module, `guarded_connection` and `guarded_cursor` are the ones that know DBUtils. What they touch of its privates
is listed here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from dbutils import pooled_db
from dbutils.pooled_db import PooledDB, PooledDedicatedDBConnection
from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.common import forks
from threadbridge.common.aside import Aside
from threadbridge.common.garbage import is_collecting, watch_collector
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.current import RunningRequest, current_or_none, is_cancelling
from threadbridge.database.borrow import Borrow
from threadbridge.database.driver import ConnectionSettings, Database
from threadbridge.database.drivers import database_of
from threadbridge.database.guarded_connection import GuardedConnection
from threadbridge.database.predecessors import ConnectionList
from threadbridge.database.stopper import Stopper
from threadbridge.sql.effects import can_be_repeated
from threadbridge.sql.statements import KEPT_TEXT

logger = logging.getLogger("threadbridge")
_rerun_log = RepeatedLog(logger)

# Seconds in which the connection for stopping queries is looked after once at most, when the pool makes connections.
CONTROL_INTERVAL = 10.0

# DBUtils offers no other way to count, hand out and take back connections without network traffic under its lock.
_OF_POOL = (
    *("_args", "_blocking", "_connections", "_creator", "_failures", "_idle_cache", "_isfatal", "_kwargs", "_lock"),
    *("_maxcached", "_maxconnections", "_maxshared", "_maxusage", "_ping", "_reset", "_setsession", "_wait_lock"),
    *("cache", "connection", "steady_connection", "unshare"),
)
_OF_CONNECTION = ("_close", "_create", "_cursor", "_ping_check", "_setsession", "_store")
_PARAMETERS_OF_CONNECTION = "self creator maxusage setsession failures ping closeable isfatal args kwargs"
_OF_CURSOR = ("__getattr__", "_clearsizes", "_setsizes")


def pool_size(pool: object) -> int:
    """How many connections a ``PooledDB`` hands out at once; 0 when it is unlimited.

    Raises ``ValueError`` when the object is no ``PooledDB``, or one of a DBUtils that threadbridge does not know.
    """
    if not isinstance(pool, PooledDB):
        raise ValueError(f"pool={pool!r} is not a PooledDB of DBUtils; give the pool object itself, or leave pool out")
    missing = [name for name in _OF_POOL if not hasattr(pool, name)]
    missing += [name for name in _OF_CONNECTION if not hasattr(SteadyDBConnection, name)]
    missing += [name for name in _OF_CURSOR if not hasattr(SteadyDBCursor, name)]
    missing += [name for name in ("TooManyConnectionsError",) if not hasattr(pooled_db, name)]
    if " ".join(inspect.signature(SteadyDBConnection.__init__).parameters) != _PARAMETERS_OF_CONNECTION:
        missing.append(f"SteadyDBConnection({_PARAMETERS_OF_CONNECTION})")
    if missing:
        raise ValueError(
            f"DBUtils {pool.version} has no {', '.join(missing)}; this version of threadbridge was made for DBUtils "
            "3.2: install that, or leave pool out and give threads="
        )
    size: int = pool._maxconnections
    return size


def connection_settings(pool: Any, statement_limit: float = 0.0) -> ConnectionSettings:
    """How a pool that `pool_size` has accepted makes its connections; ``statement_limit`` as for `PoolGuard`."""
    connect = getattr(pool._creator, "connect", pool._creator)
    settings = ConnectionSettings(connect, pool._args, pool._kwargs, statement_limit=statement_limit)
    is_drivers_own = database_of([_driver(pool)], settings) is not None
    return replace(settings, takes_timeouts=is_drivers_own)


def _driver(pool: Any) -> str:
    """The module of the function that makes the pool's connections."""
    creator = pool._creator
    if inspect.ismodule(creator):
        return creator.__name__
    return getattr(getattr(creator, "connect", creator), "__module__", "")


class PoolGuard:
    """Takes the place of a live ``PooledDB``'s hand-out and hand-back; the application notices nothing.

    :param pool: see `pool_size`, which has to be called before.
    :param on_ask: called on the worker side with a request that asks for a connection.
    :param tags_queries: have a request's statements begin with a comment that names it.
    :param rerun: ``safe`` repeats a query whose connection was lost, on a new one, where it was the first since the
        request got the connection, or since a commit or rollback, and leaves no trace; ``never`` repeats nothing.
    :param resets_sessions: have a connection whose session a request may have changed (variables, temporary tables,
        locks, settings) closed when it comes back, so that no other request finds that.
    :param statement_limit: seconds that a statement may take, by the database's clock and the driver's; 0 for no limit.

    The connections that the pool has ready are closed, to be made again under the guard when they are needed. All state
    is guarded by the pool's own condition, under which nobody waits for the network, but for DBUtils' own code, which
    hands out shared connections. Its lock is re-entrant: a connection may be let go under it, and so come back.

    Raises ``ValueError`` when the pool has another guard that is not closed.
    """

    def __init__(
        self,
        pool: Any,
        on_ask: Callable[[RunningRequest], None] = lambda request: None,
        *,
        tags_queries: bool = False,
        rerun: Literal["safe", "never"] = "safe",
        resets_sessions: bool = True,
        statement_limit: float = 0.0,
    ) -> None:
        self.closed: bool = False
        other = getattr(pool.connection, "__self__", None)
        if isinstance(other, PoolGuard) and not other.closed:
            raise ValueError("this pool belongs to another Bridge already; give both applications to one, or two pools")
        self._settings = connection_settings(pool, statement_limit)
        # The application may also give a function of its own; which driver that uses is seen later.
        self._database: Database | None = database_of([_driver(pool)], self._settings)
        self._defaults = self._database.defaults if self._database is not None else {}
        self._is_known = self._database is not None
        self._pool = pool
        self._on_ask = on_ask
        self.tags_queries = tags_queries
        self.resets_sessions = resets_sessions
        self._rerun = rerun
        # How many queries were repeated. Guarded by the pool's condition.
        self.reruns = 0
        self.stopper = Stopper()
        self.connections = ConnectionList(self._settings, self.stopper, self._database_by)
        self._control_kept_at = -math.inf
        self._aside = Aside()
        watch_collector()
        # When a statement last succeeded, and when one failed because the database was out of reach or a connection
        # could not be made, by `time.monotonic`; 0.0 for never. Written by workers, read by anyone.
        self.last_success = 0.0
        self.last_outage = 0.0
        # What each request holds.
        self._held: dict[RunningRequest, list[Borrow]] = {}
        # Who waits for a connection, in the order of coming.
        self._line: deque[object] = deque()
        with pool._lock:
            idle, pool._idle_cache[:] = list(pool._idle_cache), []
            if pool._maxshared:
                # Those in use are counted off when they come back.
                pool._shared_cache.clear()
            # Public methods, which PooledDB, and the connections it hands out, call on the pool itself...
            pool.connection = self._connection
            pool.cache = self._cache
            pool.steady_connection = self._steady_connection
            pool.unshare = self._unshare
            # ...and a private one: shared connections are handed out by PooledDB's own code, which waits by it.
            pool._wait_lock = self._wait
        for steady in idle:
            steady.close()
        forks.copies(self)

    def become_copy(self) -> None:
        """This is a forked process: the connections are the parent's, and what other threads were doing is undone."""
        pool = self._pool
        pool._lock = threading.Condition()
        pool._idle_cache = []
        if pool._maxshared:
            pool._shared_cache = []
        pool._connections = 0
        self._held = {}
        self.stopper = Stopper()
        self.connections = ConnectionList(self._settings, self.stopper, self._database_by)
        self._aside = Aside()

    @property
    def size(self) -> int:
        """How many connections the pool hands out at once; 0 when it is unlimited. Any thread."""
        return pool_size(self._pool)

    @property
    def in_use(self) -> int:
        """How many it has handed out. Any thread."""
        in_use: int = self._pool._connections
        return in_use

    def cancelled(self) -> Exception:
        """The error for a statement that is not begun because nobody waits for it."""
        if self._database is not None:
            return self._database.cancelled()
        return ConnectionAbortedError("the request was cancelled")

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached or has no connection left."""
        return isinstance(error, pooled_db.TooManyConnectionsError) or (
            self._database is not None and self._database.is_outage(error)
        )

    def is_lost(self, error: BaseException) -> bool:
        """Whether it is an outage in which the connection was lost."""
        return self._database is None or self._database.is_lost(error)

    def note_failure(self, error: BaseException) -> None:
        """Remember when the database was last out of reach. Worker side."""
        if self.is_outage(error):
            self.last_outage = time.monotonic()

    def note_failed_connect(self) -> None:
        """Remember it too when no connection came about, for whatever reason. Worker side."""
        self.last_outage = time.monotonic()

    def connect_apart(self) -> Any:
        """A connection made as the pool makes its own, but not the pool's; its network timeouts are a few seconds.

        Only a driver's own function takes timeouts: one of the application's may take as long as it likes. Any thread
        that may wait. Raises what the driver raises.
        """
        settings, database = self._settings, self._database
        timeouts = database.timeouts if database is not None and settings.takes_timeouts else {}
        return settings.connect(*settings.args, **{**settings.kwargs, **timeouts})

    def overdue(self) -> int:
        """How many places in the pool belong to requests that nobody waits for any more. Any thread; no lock.

        These are cancelled, or were not answered by their deadline.
        """
        now = time.monotonic()
        # A copy of the keys is made in one step.
        late = [
            each
            for each in list(self._held)
            if each.cancelled or (not each.is_answered and now > (each.deadline or now))
        ]
        return sum(
            not borrow.connection.is_abandoned for request in late for borrow in tuple(self._held.get(request, ()))
        )

    def close(self) -> None:
        """The bridge is at its end: another may have the pool. Any thread."""
        self.closed = True
        self._aside.close()
        self.stopper.close()
        if self._database is not None:
            self._database.close()

    def leave(self) -> None:
        """All threads have ended: nobody has to end anything in the place of this process. Any thread."""
        if not (self._pool._connections or self.stopper.running):
            self.connections.remove()

    def _database_by(self, driver: str) -> Database | None:
        return self._database or database_of([driver], self._settings)

    def database_of(self, connection: object) -> Database | None:
        """The kind of database that the driver's connection leads to. Worker side."""
        if not self._is_known:
            # The first connections are often made at the same time.
            with self._pool._lock:
                self._know(connection)
        return self._database

    def _know(self, connection: object) -> None:
        if self._is_known:
            return
        modules = [kind.__module__ for kind in type(connection).__mro__]
        self._database = database_of(modules, self._settings)
        self._is_known = True
        if self._database is None:
            logger.warning("queries cannot be stopped: threadbridge does not support the driver %s", modules[0])

    def may_repeat(self, error: Exception, sql: str) -> bool:
        """Whether a query that failed, the first on its connection, is to be run on another one. Worker side."""
        text = sql.encode(errors="replace")
        if self._rerun == "never" or not (self.is_lost(error) and len(sql) < KEPT_TEXT and can_be_repeated(text)):
            return False
        if not self._is_fatal(error):
            return False
        with self._pool._lock:
            self.reruns += 1
        _rerun_log.log(
            logging.WARNING, "a query was lost with its connection and is run again, on a new one: %r", error
        )
        return True

    def abandon(self, request: RunningRequest) -> tuple[int, int]:
        """Give up the connections of a request whose thread does not come back. Any thread.

        They are cut, so that the thread can do nothing more on them, and count no more: the thread that takes its
        place finds a connection. One that is still being made is closed when it comes, if ever. How many were given up
        now, and how many the request has kept, since others use them too.
        """
        with self._pool._lock:
            # Under the lock: none of them comes back to the pool, and goes to somebody else, meanwhile.
            held = self._held.get(request, ())
            for borrow in held:
                borrow.is_given_up = True
            abandoned = sum(self._abandon_unless_used(borrow.connection) for borrow in held)
            kept = sum(not borrow.connection.is_abandoned for borrow in held)
        if abandoned:
            # Perhaps it is the database that does not answer.
            self.last_outage = time.monotonic()
        return abandoned, kept

    def _abandon_unless_used(self, steady: GuardedConnection) -> bool:
        """Give up a connection if all requests that have it are given up; whether it is now. Under the pool's lock."""
        pool = self._pool
        if steady.is_abandoned or not (steady.borrows and all(borrow.is_given_up for borrow in steady.borrows)):
            return False
        steady.is_abandoned = steady.spoilt = True
        self._share_no_more(steady)
        self.stopper.end(steady.sever())
        pool._connections -= 1
        pool._lock.notify_all()
        return True

    def _share_no_more(self, steady: GuardedConnection) -> None:
        """Under the pool's lock."""
        pool = self._pool
        if pool._maxshared:
            pool._shared_cache[:] = [shared for shared in pool._shared_cache if shared.con is not steady]

    def defer(self, task: Callable[[], None]) -> bool:
        """Have the task done elsewhere if this thread must not wait for the database; whether that was so.

        Any thread: garbage is collected in all of them, the loop's and those that cancel requests too.
        """
        if self.closed or current_or_none() is not None:
            return False
        if not (is_collecting() or self.stopper.is_this_thread or is_cancelling() or _runs_a_loop()):
            return False
        self._aside.do(task)
        return True

    def _defer_hand_back(self, task: Callable[[], None]) -> bool:
        """As `defer`, but garbage never comes back in the thread that collects it, which may hold any lock."""
        if is_collecting() and not self.closed:
            self._aside.do(task)
            return True
        return self.defer(task)

    def keep_from_others(self, connection: GuardedConnection, borrow: Borrow) -> bool:
        """Let nobody have the connection after this borrower; False if the borrow is over, or somebody else has it too.

        Other requests that are cancelled do not count. The stopper's thread.
        """
        with self._pool._lock:
            if borrow not in connection.borrows or not all(other.request.cancelled for other in connection.borrows):
                return False
            connection.spoilt = True
            self._share_no_more(connection)
            return True

    # Hand-out. Worker side, or a thread that the application has started.

    def _connection(self, shareable: bool = True) -> Any:
        request = current_or_none()
        if self.stopper.lacks_thread or self._aside.lacks_thread:
            self._start_threads()
        if request is not None:
            self._on_ask(request)
            if request.cancelled:
                raise self.cancelled()
        pool = self._pool
        if not (shareable and pool._maxshared):
            return self._dedicated(request)
        # Under the lock from the choice of the connection until it counts as this request's too: no stop lies between.
        with pool._lock:
            handed_out = type(pool).connection(pool, shareable)
            self._lend(handed_out._con, request)
        return handed_out

    def _start_threads(self) -> None:
        self.stopper.start()
        with self._pool._lock:
            self._aside.start()

    def _dedicated(self, request: RunningRequest | None) -> Any:
        pool = self._pool
        with pool._lock:
            if self._line or not self._has_free():
                self._wait_in_line(request)
            # The one that came back last: it is the least likely to have been closed by the server.
            is_idle = bool(pool._idle_cache)
            steady = pool._idle_cache.pop() if is_idle else self._make()
            self._lend(steady, request)
            pool._connections += 1
        try:
            # Only now: a database that does not answer holds up this request, and what it holds can be given up.
            if is_idle:
                steady._ping_check()
            else:
                self._connect(steady)
            if steady.is_abandoned:
                # DBUtils says nothing of an attempt to connect again that has failed.
                raise self.cancelled()
            return PooledDedicatedDBConnection(pool, steady)
        except BaseException as error:
            self.note_failure(error)
            self._discard(steady)
            raise

    def _steady_connection(self) -> GuardedConnection:
        steady = self._make()
        self._connect(steady)
        return steady

    def _connect(self, steady: GuardedConnection) -> None:
        with self._pool._lock:
            self._aside.start()
        steady.connect()
        self._keep_control()

    def _keep_control(self) -> None:
        """Have the connection for stopping queries made or looked after: later the database may have none left."""
        now = time.monotonic()
        if self._database is not None and not self.closed and now >= self._control_kept_at + CONTROL_INTERVAL:
            self._control_kept_at = now
            self.stopper.do(self._database.keep_control)

    def _make(self) -> GuardedConnection:
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
            **{**self._defaults, **pool._kwargs},
        )

    def _is_fatal(self, error: Exception) -> bool:
        """Whether a connection whose statement has failed so may be replaced."""
        request = current_or_none()
        if request is not None and request.cancelled:
            return False
        if self._database is not None and self._database.is_statement_error(error):
            return False
        asked = self._pool._isfatal
        return asked is None or asked(error)

    def _wait_in_line(self, request: RunningRequest | None) -> None:
        """Wait, under the pool's condition, for a connection, behind those that have waited for longer."""
        # A request that holds a connection already may be the one that all others wait for.
        if self._has_free() and (not self._line or (request is not None and request in self._held)):
            return
        place = object()
        self._line.append(place)
        try:
            while not (self._has_free() and self._line[0] is place):
                self._wait()
        finally:
            self._line.remove(place)
            # The next in line may have a connection too.
            self._pool._lock.notify_all()

    def _has_free(self) -> bool:
        pool = self._pool
        return not pool._maxconnections or pool._connections < pool._maxconnections

    def _wait(self) -> None:
        """Wait, under the pool's condition, until a connection may have come back.

        A request that holds none waits even where the pool would raise `TooManyConnectionsError`, until its deadline:
        some other request will hand one back. One that holds a connection already may be waiting for itself. Raises the
        driver's error for a stopped statement as soon as the request is cancelled.
        """
        pool = self._pool
        request = current_or_none()
        if not pool._blocking and (request is None or request in self._held):
            raise pooled_db.TooManyConnectionsError
        if request is None:
            pool._lock.wait()
            return
        # Not waiting for a notice under way, which waits for this lock.
        take_back = request.on_cancel(self._wake_all, wait=False)
        try:
            if not request.cancelled:
                timeout = None if pool._blocking or request.deadline is None else request.deadline - time.monotonic()
                if not pool._lock.wait(timeout):
                    raise pooled_db.TooManyConnectionsError
        finally:
            take_back()
        if request.cancelled:
            # The notice may have been meant for another that waits.
            pool._lock.notify_all()
            raise self.cancelled()

    def _wake_all(self) -> None:
        with self._pool._lock:
            self._pool._lock.notify_all()

    def lend_kept(self, steady: GuardedConnection, request: RunningRequest) -> Borrow | None:
        """Lend a request a connection that it uses without having asked for it: the application has kept it.

        None if the connection is back in the pool. Worker side.
        """
        with self._pool._lock:
            if steady.is_idle:
                return None
            if steady.is_abandoned:
                steady.is_abandoned = False
                self._pool._connections += 1
            self._lend(steady, request)
        return steady.borrow_of(request)

    def _lend(self, steady: GuardedConnection, request: RunningRequest | None) -> None:
        """Under the pool's lock."""
        if request is None:
            return
        borrow = Borrow(steady, request)
        steady.borrows.append(borrow)
        self._held.setdefault(request, []).append(borrow)
        # An application may keep a connection for longer than a request; the next one is not to be stopped then.
        request.at_end[self] = lambda: self.end(self._held.get(request, ()))
        # The first connection may still have to show which database this is.
        if self._database is not None or not self._is_known:
            borrow.take_back = request.on_cancel(lambda: self.stopper.stop(borrow), wait=False)

    # Hand-back. Any thread: a connection that was forgotten comes back when it is collected.

    def _unshare(self, shared: Any) -> None:
        if self._defer_hand_back(lambda: self._unshare(shared)):
            return
        if isinstance(shared.con, GuardedConnection):
            borrow = shared.con.borrow_of(current_or_none())
            if borrow is not None:
                self.end([borrow])
        type(self._pool).unshare(self._pool, shared)

    def _cache(self, steady: Any) -> None:
        # Not to be used again then: a cursor that was forgotten with it may still have rows to fetch.
        if self._defer_hand_back(lambda: self._discard(steady)):
            return
        pool = self._pool
        # One that was handed out before there was this guard is let go.
        is_mine = isinstance(steady, GuardedConnection) and steady.guard is self
        if isinstance(steady, GuardedConnection):
            steady.clean(force=pool._reset)
            steady.guard.end(steady.borrows)
        with pool._lock:
            has_room = not pool._maxcached or len(pool._idle_cache) < pool._maxcached
            if is_mine and not steady.spoilt and has_room:
                pool._idle_cache.append(steady)
                self._count_off()
                return
        try:
            steady.close()
        finally:
            if not (isinstance(steady, GuardedConnection) and steady.is_abandoned):
                with pool._lock:
                    self._count_off()

    def _discard(self, steady: Any) -> None:
        steady.spoilt = True
        self._cache(steady)

    def end(self, borrows: Iterable[Borrow]) -> None:
        """The connections belong to their requests no more, after stops that are under way."""
        for borrow in list(borrows):
            borrow.end()
            with self._pool._lock:
                held = self._held.get(borrow.request, [])
                if borrow in held:
                    held.remove(borrow)
                    borrow.connection.borrows.remove(borrow)
                    self._abandon_unless_used(borrow.connection)
                if not held:
                    self._held.pop(borrow.request, None)

    def _count_off(self) -> None:
        """Under the pool's lock."""
        pool = self._pool
        pool._connections -= 1
        if self._line or pool._maxshared:
            # All, for only the first in line may go on.
            pool._lock.notify_all()


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
