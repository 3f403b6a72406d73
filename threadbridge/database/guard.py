"""The general part of a pool's guard: the pool's database, its borrows, and the threads that clean up.

This module knows no particular pool; `PoolGuard` adds what DBUtils needs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from threadbridge.common.background_thread import BackgroundThread
from threadbridge.common.garbage import is_collecting, watch_collector
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.current import current_or_none, is_cancelled, is_cancelling
from threadbridge.database.borrow import Borrows
from threadbridge.database.driver import ConnectionSettings, Database
from threadbridge.database.drivers import database_of
from threadbridge.database.predecessors import ConnectionList
from threadbridge.database.stopper import Stopper
from threadbridge.database.stopper_thread import is_stopper_thread
from threadbridge.sql.effects import can_be_repeated
from threadbridge.sql.statements import MAX_TEXT

logger = logging.getLogger("threadbridge")
_rerun_log = RepeatedLog(logger)


class Guard:
    """The guard of one connection pool; a subclass makes it a `borrow.Pool`, and makes its `Borrows`.

    Workers write ``last_success`` and ``last_outage``, and any thread reads them. The pool's lock guards the kind of
    database, ``reruns`` and the state of ``borrows``. No thread waits for the network under it, except in DBUtils' own
    code for shared connections. It is re-entrant, as connections may be collected, and so come back, under it.

    :param lock: the pool's own.
    :param settings: how the pool makes its connections.
    :param drivers: the modules by which the driver may be recognised; if they do not tell, the first connection does.
    :param tags_queries: whether each statement of a request begins with a comment that names the request.
    :param rerun: ``safe`` or ``never``; see `may_repeat`.
    :param resets_sessions: whether a connection whose session a request may have changed (variables, temporary tables,
        locks, settings) is closed when it comes back, so that no other request sees the changes.
    """

    borrows: Borrows

    def __init__(
        self,
        lock: threading.Condition,
        settings: ConnectionSettings,
        drivers: Sequence[str],
        *,
        tags_queries: bool,
        rerun: Literal["safe", "never"],
        resets_sessions: bool,
    ) -> None:
        self.closed = False
        self.lock = lock
        self.tags_queries = tags_queries
        self.resets_sessions = resets_sessions
        # How many queries were repeated.
        self.reruns = 0
        # When a statement last succeeded, and when one last failed because the database was out of reach, or no
        # connection could be made. By `time.monotonic`; 0.0 for never.
        self.last_success = self.last_outage = 0.0
        self._rerun = rerun
        self._settings = settings
        self._database: Database | None = database_of(drivers, settings)
        self._is_known = self._database is not None
        # Until the first connection is made, the driver may be unknown.
        self.can_stop_queries = True
        self._make_threads()
        watch_collector()

    def _make_threads(self) -> None:
        self.stopper = Stopper()
        self.connections = ConnectionList(
            self._settings, self.stopper, lambda driver: self._database or database_of([driver], self._settings)
        )
        # Gives back connections for threads that must not wait for the database.
        self._background = BackgroundThread()

    def become_copy(self) -> None:
        """This is a forked process: its parent owns the connections, and other threads' work is not continued."""
        # Another thread may have held the old one when the process forked.
        self.lock = threading.Condition()
        self.borrows.clear()
        self._make_threads()

    def close(self) -> None:
        """Stop guarding the pool; another guard may follow. Any thread."""
        self.closed = True
        self._background.close()
        self.stopper.close()
        if self._database is not None:
            self._database.close()

    def _start_background(self) -> None:
        with self.lock:
            self._background.start()

    # The database.

    def database_of(self, connection: object) -> Database | None:
        """The kind of database that the driver's connection leads to; None if the driver is unknown."""
        # Several threads often make the first connections at the same time.
        with self.lock:
            if not self._is_known:
                modules = [kind.__module__ for kind in type(connection).__mro__]
                self._database = database_of(modules, self._settings)
                self._is_known = True
                self.can_stop_queries = self._database is not None
                if not self.can_stop_queries:
                    logger.warning("queries cannot be stopped: threadbridge does not support the driver %s", modules[0])
        return self._database

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

    def connect_apart(self) -> Any:
        """Connect as the pool does, but outside the pool, and with timeouts of a few seconds.

        A function of the application's gets no timeouts. Any thread that may wait. Raises what the driver raises.
        """
        return self._settings.connect_within({} if self._database is None else self._database.timeouts)

    def may_repeat(self, error: Exception, sql: str) -> bool:
        """Whether a query that failed as the first on its connection may run again on another.

        Only if ``rerun`` is ``safe``, the connection was lost, and the query leaves no trace.
        """
        leaves_no_trace = len(sql) < MAX_TEXT and can_be_repeated(sql.encode(errors="replace"))
        if self._rerun == "never" or not (leaves_no_trace and self.is_lost(error) and self.is_fatal(error)):
            return False
        with self.lock:
            self.reruns += 1
        _rerun_log.log(
            logging.WARNING, "a query was lost with its connection and is run again, on a new one: %r", error
        )
        return True

    # Giving back.

    def defer(self, task: Callable[[], None]) -> bool:
        """Leave the task to another thread if this one must not wait for the database; returns whether it must not.

        Any thread: garbage is collected in all of them, including the loop's and those that cancel requests.
        """
        if self.closed or current_or_none() is not None:
            return False
        is_on_loop = asyncio._get_running_loop() is not None
        if not (is_on_loop or is_collecting() or is_stopper_thread() or is_cancelling()):
            return False
        self._background.do(task)
        return True

    def _defer_hand_back(self, task: Callable[[], None]) -> bool:
        """Like `defer`, but always defers during a garbage collection: the thread may hold any lock."""
        if is_collecting() and not self.closed:
            self._background.do(task)
            return True
        return self.defer(task)
