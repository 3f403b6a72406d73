"""The guard of any pool: who holds which connection, the kind of database, the threads that clean up.

It knows no particular pool: `pools` has a subclass for each kind.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import BackgroundThread, is_collecting
from threadbridge.crossing.current import TrackedRequest, current_or_none, is_cancelled, is_cancelling
from threadbridge.database.borrow import Borrow, HeldConnection, borrow_of
from threadbridge.database.driver import ConnectionSettings, Database
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.drivers import database_of
from threadbridge.database.predecessors import ConnectionList
from threadbridge.database.stopper import Stopper
from threadbridge.database.stopper_thread import NAME
from threadbridge.sql.effects import can_be_repeated
from threadbridge.sql.statements import MAX_TEXT

logger = logging.getLogger("threadbridge")
# When the pool makes connections, the control connections are checked at most once in this many seconds.
CONTROL_INTERVAL = 10.0
# How many servers are known at most.
MAX_SERVERS = 32

_rerun_log, _obstacles = RepeatedLog(logger), RepeatedLog(logger, 3600)


def nobody_asked(guard: Guard, request: TrackedRequest) -> None:
    """What a guard without a bridge does with a request that asks for a connection."""


class GuardOptions(TypedDict, total=False):
    """The keywords of all guards: see `Guard`."""

    tags_queries: bool
    rerun: Literal["safe", "never"]
    resets_sessions: bool
    statement_limit: float
    stopper: Stopper | None
    is_replica: bool


class Guard(abc.ABC):
    """The part of a pool's guard that knows no particular pool.

    Any thread writes and reads ``last_success`` and ``last_outage``. The pool's lock guards the kind of database,
    ``reruns`` and the borrows of each request and connection. No thread waits for the network under it, except in
    DBUtils' own code for shared connections. It is re-entrant, as connections may be collected, and so come back, under
    it.

    :param name: the pool's, for operators: without a password.
    :param on_ask: called on the worker side with this guard and each request that asks for a connection.
    :param drivers: the modules by which the driver may be recognised; if they do not tell, the first connection does.
    :param lock: the pool's own; the guard makes one by default.
    :param tags_queries: whether each statement of a request begins with a comment that names the request.
    :param rerun: whether queries that leave no trace may run again if they are lost with their connection.
    :param resets_sessions: whether a connection whose session a request may have changed (variables, temporary tables,
        locks, settings) is closed when it comes back.
    :param statement_limit: seconds that a statement may take, by the database's clock and the driver's; 0 for no limit.
    :param stopper: one that several guards share, and whoever made it closes; the guard makes its own by default.
    :param is_replica: whether nothing may be changed on the pool's connections.
    """

    # A short name among the bridge's pools, which the `Desk` makes unique: of lanes, metrics and checks.
    key = ""

    def __init__(
        self,
        name: str,
        settings: ConnectionSettings,
        drivers: Sequence[str],
        on_ask: Callable[[Guard, TrackedRequest], None],
        *,
        lock: threading.Condition | None = None,
        tags_queries: bool = False,
        rerun: Literal["safe", "never"] = "safe",
        resets_sessions: bool = True,
        statement_limit: float = 0.0,
        stopper: Stopper | None = None,
        is_replica: bool = False,
    ) -> None:
        self.name = name
        self.closed = False
        self.lock = lock or threading.Condition()
        self._on_ask = on_ask
        self.tags_queries = tags_queries
        self.resets_sessions = resets_sessions
        self.reruns = 0
        # When a statement last succeeded, and when the database was last out of reach. By `time.monotonic`; 0.0: never.
        self.last_success = self.last_outage = 0.0
        self._control_checked_at = -math.inf
        # The servers to which connections have come: any thread replaces it, and one that gets lost is added again.
        self._servers: frozenset[str] = frozenset()
        self._rerun = rerun
        self.settings = replace(settings, statement_limit=statement_limit, is_replica=is_replica)
        self._database: Database | None = database_of(drivers, self.settings)
        self._is_known = self._database is not None
        # In forked processes, it starts afresh by itself.
        self.stopper = stopper or Stopper()
        self._owns_stopper = stopper is None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._by_request: dict[TrackedRequest, list[Borrow]] = {}
        self.connections = ConnectionList(
            self.settings, self.stopper, lambda driver: self._database or database_of([driver], self.settings)
        )
        # Gives back connections for threads that must not wait for the database.
        self._background = BackgroundThread()

    def become_copy(self) -> None:
        """This is a forked process: its parent owns the connections, and other threads' work is not continued."""
        # Another thread may have held the old one when the process forked.
        self.lock = threading.Condition()
        self._start_afresh()

    def close(self) -> None:
        """End the guard's threads; another guard may follow. Any thread."""
        self.closed = True
        self._background.close()
        self.connections.end()
        if self._owns_stopper:
            self.stopper.close()
        if self._database is not None:
            self._database.close()

    def _start_background(self) -> None:
        with self.lock:
            self._background.start()

    def note_made(self, connection: DriverConnection) -> None:
        """Note to which server a connection has come. The next `keep_control` acts at once if it is a new one."""
        server = connection.server
        if server not in self._servers:
            self._servers = frozenset([*self._servers, server] if len(self._servers) < MAX_SERVERS else [server])
            self._control_checked_at = -math.inf
        if connection.identity is not None and connection.identity.obstacle:
            message = "queries in %s cannot be stopped: %s"
            _obstacles.log(logging.WARNING, message, connection.database.name, connection.identity.obstacle)

    def keep_control(self) -> None:
        """Make or check control connections now and then: when one is needed, the database may refuse new ones."""
        now = time.monotonic()
        if self._database is not None and not self.closed and now >= self._control_checked_at + CONTROL_INTERVAL:
            self._control_checked_at = now
            for server in self._servers:
                self.stopper.keep_control(self._database, server)

    # The database.

    def database_of(self, connection: object) -> Database | None:
        """The kind of database that the driver's connection leads to; None if the driver is unknown."""
        if self._is_known:
            return self._database
        # Several threads often make the first connections at the same time.
        with self.lock:
            if not self._is_known:
                modules = [kind.__module__ for kind in type(connection).__mro__]
                self._database = database_of(modules, self.settings)
                self._is_known = True
                if self._database is None:
                    logger.warning("queries cannot be stopped: threadbridge does not support the driver %s", modules[0])
        return self._database

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Arguments for connecting that apply unless the pool's settings contain them."""
        return {} if self._database is None else self._database.defaults

    def cancelled(self) -> Exception:
        """The error to raise for a statement of a cancelled request: the driver's for a stopped statement."""
        if self._database is None:
            return ConnectionAbortedError("the request was cancelled")
        return self._database.cancelled()

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached, or cannot do its work for now."""
        return self._database is not None and self._database.is_outage(error)

    def is_lost(self, error: BaseException) -> bool:
        """Whether the error means that the connection was lost."""
        return self._database is None or self._database.is_lost(error)

    def is_fatal(self, error: Exception) -> bool:
        """Whether a connection whose statement failed with this error may be replaced."""
        return not (is_cancelled() or (self._database is not None and self._database.is_statement_error(error)))

    def note_failure(self, error: BaseException) -> None:
        """Record the time if the error is an outage."""
        if self.is_outage(error):
            self.last_outage = time.monotonic()

    @property
    def knows_server(self) -> bool:
        """Whether the guard can connect by itself. Any thread."""
        return True

    def connect_apart(self) -> Any:
        """Connect outside the pool; if ``connect`` is the driver's, within seconds. Any thread that may wait."""
        return self.settings.connect_within({} if self._database is None else self._database.timeouts)

    def may_repeat(self, error: Exception, sql: str) -> bool:
        """Whether a query that failed as the first on its connection may run again on another."""
        leaves_no_trace = len(sql) < MAX_TEXT and can_be_repeated(sql.encode(errors="replace"))
        if self._rerun == "never" or not (leaves_no_trace and self.is_lost(error) and self.is_fatal(error)):
            return False
        with self.lock:
            self.reruns += 1
        _rerun_log.log(logging.WARNING, "a query lost with its connection is run again, on a new one: %r", error)
        return True

    # Who holds which connection.

    def count_out(self, connection: HeldConnection) -> None:  # noqa: B027 - few pools take one back
        """Count a connection as handed out again: one that was cut, and whose thread came back. Under the pool's lock.

        By default it no longer belongs to the pool.
        """

    @abc.abstractmethod
    def count_in(self, connection: HeldConnection) -> None:
        """Count one connection less as handed out, and notify those that wait for one. Under the pool's lock."""

    def stop_sharing(self, connection: HeldConnection) -> None:  # noqa: B027 - few pools share
        """Hand the connection out to no other request. Under the pool's lock."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many connections the pool hands out at once; 0 if that is unlimited. Any thread."""

    @property
    @abc.abstractmethod
    def in_use(self) -> int:
        """How many connections the pool has handed out. Any thread."""

    def hand_out_for(self, replica: Guard) -> bool:
        """Hand out a replica's connections to requests that read from it; returns whether this kind of pool can.

        Otherwise the application must choose the pool.
        """
        return False

    def leave(self) -> None:
        """Remove the list of connections if none is left in the database. Any thread, once all workers have ended."""
        if not (self.in_use or self.stopper.running):
            self.connections.remove()

    def ask(self) -> TrackedRequest | None:
        """Note that this thread asks for a connection, before it waits for one; returns the request that it serves.

        Raises `cancelled` if the request is cancelled.
        """
        request = current_or_none()
        if self.stopper.lacks_thread or self._background.lacks_thread:
            # They could not be started when they were needed.
            self.stopper.start()
            self._start_background()
        if request is not None:
            self._on_ask(self, request)
            if request.cancelled:
                raise self.cancelled()
        return request

    def overdue(self) -> int:
        """How many connections are held by requests that are cancelled or late. Any thread; no lock."""
        now = time.monotonic()
        # Each copy is atomic.
        return sum(
            not borrow.connection.is_abandoned
            for each, borrows in self._by_request.copy().items()
            if each.cancelled or (not each.is_answered and now > (each.deadline or now))
            for borrow in tuple(borrows)
        )

    def holds(self, request: TrackedRequest | None) -> bool:
        """Whether the request holds a connection of the pool. Under the pool's lock."""
        return request in self._by_request

    def lend(self, connection: HeldConnection, request: TrackedRequest) -> Borrow:
        """Record that a request holds the connection. Under the pool's lock."""
        borrow = Borrow(connection, request, self.may_stop, self.cancelled)
        connection.borrows.append(borrow)
        self._by_request.setdefault(request, []).append(borrow)
        # The application may hold a connection across requests; stopping this one must not hit the next one's query.
        request.at_end[self] = lambda: self.end_borrows(self._by_request.get(request, ()))
        # Until the first connection is made, the driver may be unknown.
        if self._database is not None or not self._is_known:
            borrow.withdraw_callback = request.on_cancel(lambda: self.stopper.stop_query(borrow), wait=False)
        return borrow

    def lend_to_current(self, connection: HeldConnection) -> None:
        """Lend the connection to the request that this thread serves, unless the request holds it already."""
        request = current_or_none()
        if request is not None and borrow_of(connection, request) is None:
            with self.lock:
                self.lend(connection, request)

    def current_borrow(self, connection: HeldConnection) -> Borrow | None:
        """The borrow for which this thread uses the connection.

        A connection that the application holds across requests is lent to each request that uses it. In the
        application's own threads, it is the only borrow. None if there is none, or the connection is back in the pool.
        """
        request = current_or_none()
        if request is None:
            borrows = tuple(connection.borrows)
            return borrows[0] if len(borrows) == 1 else None
        if (borrow := borrow_of(connection, request)) is not None:
            return borrow
        with self.lock:
            if connection.is_idle:
                return None
            if connection.is_abandoned:
                connection.is_abandoned = False
                self.count_out(connection)
            # Handed out in a way that the guard does not see.
            self._on_ask(self, request)
            return self.lend(connection, request)

    def end_borrows(self, borrows: Iterable[Borrow]) -> None:
        """End borrows, after attempts to stop their queries that are under way. Any thread that may wait."""
        for borrow in list(borrows):
            borrow.end()
            with self.lock:
                held = self._by_request.get(borrow.request, [])
                if borrow in held:
                    held.remove(borrow)
                    borrow.connection.borrows.remove(borrow)
                    if borrow.connection.borrows:
                        self._abandon_if_unused(borrow.connection)
                if not held:
                    self._by_request.pop(borrow.request, None)

    def abandon(self, request: TrackedRequest) -> tuple[int, int]:
        """Cut the connections of a request whose thread does not come back. Any thread.

        They no longer count as handed out. One that is still being made is closed when it is ready, if ever. Returns
        how many were cut now, and how many were not, because other requests use them too.
        """
        with self.lock:
            # Under the lock, so that no connection comes back and is handed out to another request meanwhile.
            held = self._by_request.get(request, ())
            for borrow in held:
                borrow.is_abandoned = True
            abandoned = sum(self._abandon_if_unused(borrow.connection) for borrow in held)
            shared = sum(not borrow.connection.is_abandoned for borrow in held)
        if abandoned:
            # Perhaps because the database does not answer.
            self.last_outage = time.monotonic()
        return abandoned, shared

    def _abandon_if_unused(self, connection: HeldConnection) -> bool:
        """Cut a connection if all its borrows are abandoned; returns whether it was cut now. Under the pool's lock."""
        if connection.is_abandoned or not all(borrow.is_abandoned for borrow in connection.borrows):
            return False
        connection.is_abandoned = connection.must_close = True
        self.stop_sharing(connection)
        self.stopper.kill(connection.sever())
        self.count_in(connection)
        return True

    def may_stop(self, borrow: Borrow) -> bool:
        """Whether only cancelled requests hold the connection; if so, no other will get it. Any thread."""
        connection = borrow.connection
        with self.lock:
            if borrow not in connection.borrows or not all(other.request.cancelled for other in connection.borrows):
                return False
            connection.must_close = True
            self.stop_sharing(connection)
            return True

    # Giving back.

    def must_not_wait(self, *, is_hand_back: bool = False) -> bool:
        """Whether this thread must not wait for the database. Any thread.

        Garbage is collected in all of them, including the loop's and those that cancel requests. During a collection, a
        hand-back must never wait, as the thread may hold any lock.
        """
        if self.closed or (current_or_none() is not None and not (is_hand_back and is_collecting())):
            return False
        is_stopper = threading.current_thread().name.startswith(NAME)
        return is_stopper or is_collecting() or is_cancelling() or asyncio._get_running_loop() is not None

    def defer(self, task: Callable[[], None], *, is_hand_back: bool = False) -> bool:
        """Leave the task to another thread if this one must not wait for the database; returns whether it must not."""
        if not self.must_not_wait(is_hand_back=is_hand_back):
            return False
        self.leave_to_background(task)
        return True

    def leave_to_background(self, task: Callable[[], None]) -> None:
        """Leave the task to a thread that may wait for the database, once there is one. Any thread."""
        self._background.do(task)

    def do_later(self, task: Callable[[], None]) -> None:
        """Leave the task to a thread that may wait for the database. Any thread, but not during a collection."""
        self._start_background()
        self._background.do(task)
