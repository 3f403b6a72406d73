"""Stops the queries of cancelled requests, and kills orphaned connections in the database."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.database.bounded_calls import BoundedCalls
from threadbridge.database.driver import Database, Identity, StopFailed
from threadbridge.database.stopper_thread import StopperThread

logger = logging.getLogger("threadbridge")

# Pauses between two attempts to stop a query; they double. The first is short, as a statement may be sent just after an
# attempt that found nothing to stop.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0
# Seconds after which a cancelled request that still holds its connection loses it.
SEVER_AFTER = 5.0
# Seconds that one attempt may take, connecting included.
ATTEMPT_TIMEOUT = 4.0
# Pauses between two checks whether an orphaned connection has ended in the database; they double.
FIRST_CHECK = 0.1
LONGEST_CHECK = 5.0
# Seconds after which an orphan that cannot be found is forgotten, for example because another server answers now.
LONGEST_SEARCH = 3600.0
# How many orphans are remembered; the oldest is forgotten first.
MAX_ORPHANS = 1000
# Of how many servers of a database it is known whether they answer; those with nothing to do are forgotten first.
MAX_SERVERS = 32


class StopResult(NamedTuple):
    """Whether an attempt met a statement, and whether it may have come before one, so that it must be repeated."""

    was_running: bool
    try_again: bool


@dataclass(frozen=True)
class Orphan:
    """A connection that is no longer used, while the database may still work for it."""

    database: Database
    identity: Identity
    # Keeps the connection on this process's list.
    entry: object = field(default=None, compare=False)
    # The process id of the dead process that left it; None if it was this process's.
    predecessor: int | None = field(default=None, compare=False)


class Stoppable(Protocol):
    """A connection held by a cancelled request, whose query is to be stopped."""

    # The request's, in the log.
    name: str
    is_over: bool

    @property
    def where(self) -> tuple[Database, str] | None:
        """Where the query runs, and `Identity.server`; None while the connection is being made. Any thread."""

    def stop_query(self) -> StopResult:
        """Ask the database to stop the query. In a bounded call. Raises `StopFailed`."""

    def sever(self) -> Sequence[Orphan] | None:
        """Cut the connection, so that the thread waiting on it fails at once. The stopper's thread.

        Returns the orphans that this leaves in the database: none while the connection is being made. Returns None, and
        cuts nothing, if other requests use the connection.
        """


@dataclass
class _Stop:
    """A query to stop; the stopper's thread owns it."""

    what: Stoppable
    since: float
    pause: float = FIRST_PAUSE
    try_again: bool = True
    was_running: bool = False
    # Whether an attempt is under way, or waits for its turn.
    is_asking: bool = False
    # Whether the connection was given back, and nothing is left to do but to count.
    has_ended: bool = False


@dataclass
class _Watch:
    """An orphan that must end; the stopper's thread owns it."""

    since: float
    pause: float = FIRST_CHECK
    was_killed: bool = False


class Stopper(StopperThread):
    """For each cancelled request, asks the database to stop the query, again and again. For any number of databases.

    After `SEVER_AFTER` seconds it cuts the connection, which frees the worker, and makes the database end the
    connection, which frees its locks; it checks until that has happened.

    A lock that is not held while the database is asked guards the orphans. The thread owns the rest; other threads may
    read the counters.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cut, self._unconnected, self._forgot = RepeatedLog(logger), RepeatedLog(logger), RepeatedLog(logger)
        self._gone, self._inherited = RepeatedLog(logger), RepeatedLog(logger)
        # Requests whose running query was stopped and which then gave back their connection by themselves; failed
        # attempts; connections cut; connections killed, including those of dead processes.
        self.stops = self.failures = self.severed = self.killed = 0
        self._forget_all()
        forks.copies(self)

    def _forget_all(self) -> None:
        # One server that does not answer must not delay stops in another.
        self._calls: weakref.WeakKeyDictionary[Database, dict[str, BoundedCalls]] = weakref.WeakKeyDictionary()
        self._orphans: dict[Orphan, _Watch] = {}
        # Re-entrant: garbage may be collected under it, and connections then be given up.
        self._lock = threading.RLock()

    def become_copy(self) -> None:
        """This is a forked process: its parent goes on with the work, and has the threads."""
        super().become_copy()
        self._forget_all()

    @property
    def running(self) -> int:
        """How many orphaned connections have not yet ended in their databases. Any thread."""
        return len(self._orphans)

    def stop_query(self, what: Stoppable) -> None:
        """Stop a query soon. Any thread; returns at once."""
        task = _Stop(what, time.monotonic())
        self.add(task.since, lambda: self._continue(task))

    def kill(self, orphans: Iterable[Orphan]) -> None:
        """End orphaned connections in their databases. Any thread; returns at once."""
        for orphan in orphans:
            self._remember(orphan)

    def keep_control(self, database: Database, server: str) -> None:
        """Make or check the control connection to a server soon, in a bounded call. Any thread."""

        def note(outcome: object) -> None:
            if isinstance(outcome, StopFailed):
                logger.debug("not done: %s", outcome)

        def keep() -> None:
            self._calls_to(database, server).call(lambda: database.keep_control(server), note, can_wait=True)

        self.add(time.monotonic(), keep)

    def _calls_to(self, database: Database, server: str) -> BoundedCalls:
        by_server = self._calls.setdefault(database, {})
        calls = by_server.get(server)
        if calls is None:
            by_server[server] = calls = BoundedCalls(self, database.name, ATTEMPT_TIMEOUT)
            if len(by_server) > MAX_SERVERS:
                for each in [each for each, unused in by_server.items() if unused.is_unused and unused is not calls]:
                    del by_server[each]
        return calls

    # Requests that still hold their connection.

    def _continue(self, task: _Stop) -> None:
        if task.what.is_over:
            task.has_ended = True
            if not task.is_asking:
                self.stops += task.was_running
            return
        latest = task.since + SEVER_AFTER
        if time.monotonic() >= latest:
            self._sever(task)
            return
        pause, task.pause = task.pause, min(2 * task.pause, LONGEST_PAUSE)
        due = time.monotonic() + pause
        if task.try_again and (where := task.what.where) is not None:
            calls = self._calls_to(*where)
            if not task.is_asking:
                task.is_asking = True
                calls.call(task.what.stop_query, lambda outcome: self._note_attempt(task, outcome))
            due = max(due, calls.retry_at)
        self.add(min(due, latest), lambda: self._continue(task))

    def _note_attempt(self, task: _Stop, outcome: StopResult | StopFailed | None) -> None:
        task.is_asking = False
        if isinstance(outcome, StopFailed):
            self.failures += 1
        elif outcome is not None:
            task.try_again = outcome.try_again
            task.was_running = task.was_running or outcome.was_running
        if task.has_ended:
            self.stops += task.was_running

    def _sever(self, task: _Stop) -> None:
        orphans = task.what.sever()
        if orphans is None:
            self.add(time.monotonic() + LONGEST_PAUSE, lambda: self._continue(task))
            return
        if not orphans:
            # Logged even if the request no longer holds the connection: being cut may have freed it just now.
            message = "request %s: cancelled %g s ago but still waiting for a new connection to the database"
            self._unconnected.log(logging.WARNING, message, task.what.name, SEVER_AFTER)
            return
        self.severed += 1
        numbers = " and ".join(str(orphan.identity.number) for orphan in orphans)
        self._cut.log(
            logging.WARNING,
            "request %s: cancelled %g s ago but still holds connection %s; cutting it, and killing it in %s when "
            "reachable",
            *(task.what.name, SEVER_AFTER, numbers, orphans[0].database.name),
        )
        self.kill(orphans)

    # Orphaned connections.

    def _remember(self, orphan: Orphan) -> None:
        watch = _Watch(time.monotonic())
        with self._lock:
            if orphan in self._orphans:
                return
            self._orphans[orphan] = watch
            oldest = next(iter(self._orphans)) if len(self._orphans) > MAX_ORPHANS else None
            if oldest is not None:
                del self._orphans[oldest]
        if oldest is not None:
            self._give_up(oldest, f"more than {MAX_ORPHANS} such connections are left")
        self.add(watch.since, lambda: self._check(orphan, watch))

    def _check(self, orphan: Orphan, watch: _Watch) -> None:
        if self._orphans.get(orphan) is watch:
            self._calls_to(orphan.database, orphan.identity.server).call(
                lambda: orphan.database.kill(orphan.identity),
                lambda outcome: self._note_check(orphan, watch, outcome),
                # If it fails, perhaps only this one cannot be found any more.
                can_wait=True,
            )

    def _note_check(self, orphan: Orphan, watch: _Watch, outcome: bool | StopFailed | None) -> None:
        """Note whether the connection had ended already."""
        if isinstance(outcome, StopFailed):
            self.failures += 1
            if time.monotonic() - watch.since > LONGEST_SEARCH:
                self._give_up(orphan, f"it was not found for {LONGEST_SEARCH:g} s: {outcome}")
                return
            logger.debug("connection %s is not ended: %s", orphan.identity.number, outcome)
        elif outcome:
            self._note_end(orphan, watch)
            return
        elif outcome is False and not watch.was_killed:
            watch.was_killed = True
            self.killed += 1
        pause, watch.pause = watch.pause, min(2 * watch.pause, LONGEST_CHECK)
        due = max(time.monotonic() + pause, self._calls_to(orphan.database, orphan.identity.server).retry_at)
        self.add(due, lambda: self._check(orphan, watch))

    def _forget(self, orphan: Orphan) -> None:
        with self._lock:
            # Another thread may have removed it from a full list meanwhile.
            self._orphans.pop(orphan, None)

    def _give_up(self, orphan: Orphan, reason: str) -> None:
        message = "connection %s may still be running a query in %s, and is no longer checked: %s"
        self._forgot.log(logging.ERROR, message, orphan.identity.number, orphan.database.name, reason)
        self._forget(orphan)

    def _note_end(self, orphan: Orphan, watch: _Watch) -> None:
        seconds = time.monotonic() - watch.since
        if orphan.predecessor is None:
            how = ", killed on request" if watch.was_killed else ""
            message = "connection %s has ended in %s%s, %.1f s after it was given up"
            self._gone.log(logging.WARNING, message, orphan.identity.number, orphan.database.name, how, seconds)
        elif watch.was_killed:
            message = "connection %s of dead process %d has been killed in %s, %.1f s after it was found"
            number, name = orphan.identity.number, orphan.database.name
            self._inherited.log(logging.WARNING, message, number, orphan.predecessor, name, seconds)
        self._forget(orphan)
