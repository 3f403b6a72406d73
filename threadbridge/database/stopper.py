"""The thread that stops queries: it asks the database, cuts what does not stop, and remembers what still runs there."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED
from threadbridge.database.bounded_calls import BoundedCalls, NoAnswer, is_bounded_call
from threadbridge.database.driver import StopFailed

logger = logging.getLogger("threadbridge")

# A statement may be sent just after a stop that found nothing to stop, so look again soon; the pauses double.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0
# While the database does not answer, only one attempt is made in this many seconds, for all requests.
OUTAGE_PAUSE = 1.0
# Seconds after which a request that has been told to stop loses its connection, whatever the database goes on doing.
SEVER_AFTER = 5.0
# Seconds that one attempt may take, connecting included.
ATTEMPT_TIMEOUT = 4.0
# Pauses between two looks at a connection that was cut and has not ended in the database; they double.
FIRST_LOOK = 0.1
LONGEST_LOOK = 5.0
# Seconds for which one is looked for that cannot be found, for example as its server is not the one that answers now.
# Limits in the server end its statement and transaction much sooner.
LONGEST_SEARCH = 3600.0
# How many of those are remembered; the oldest is forgotten first.
MOST_REMAINS = 1000


class Told(NamedTuple):
    """What came of telling the database to stop a query.

    :param hit: whether a statement ran on the connection then.
    :param again: whether a statement may have missed the order, so that it must be given again.
    """

    hit: bool
    again: bool


class Remains(Hashable, Protocol):
    """A connection that nobody uses any more, as long as the database may still work for it.

    Equal to another that stands for the same connection.
    """

    @property
    def number(self) -> int | None:
        """Its number in the database's list of processes."""

    @property
    def predecessor(self) -> int | None:
        """The dead process that has left it; None if it was this process's."""

    def end(self) -> bool:
        """Have the database end it; whether it is seen to have ended. In a bounded call. Raises `StopFailed`."""


class Stoppable(Protocol):
    """A request's connection, on which a query may run that is to be stopped."""

    @property
    def name(self) -> str:
        """The request's, for the log."""

    @property
    def is_over(self) -> bool:
        """Whether the request has the connection no more."""

    def stop(self) -> Told:
        """Tell the database to stop the query. In a bounded call. Raises `StopFailed`."""

    def sever(self) -> Sequence[Remains] | None:
        """Have whoever waits for the database fail at once, without its help; what is left in the database.

        Nothing while the connection is being made. None if other requests use it. The stopper's thread.
        """


@dataclass(order=True)
class _Task:
    due: float
    number: int
    run: Callable[[], None] = field(compare=False)
    # Whether it comes again and again, until the stopper is closed.
    repeats: bool = field(default=False, compare=False)


@dataclass
class _Stop:
    what: Stoppable
    since: float
    pause: float = FIRST_PAUSE
    again: bool = True
    hit: bool = False


@dataclass
class _End:
    since: float
    pause: float = FIRST_LOOK
    told: bool = False


class Stopper:
    """Stops what it is given, in a daemon thread that ends when it has been closed and nothing is left to do.

    For each request: the database is told to stop the query, again and again; after `SEVER_AFTER` seconds the
    connection is cut, which frees the worker; then the database is told to end the connection, which frees its locks,
    until it is seen to have ended.

    The heap of what is due is guarded by a condition, which is not held while the database is asked. All else is the
    thread's own; others may read the counters.
    """

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # Whether something is to be done and no thread could be started for it.
        self.lacks_thread = False
        self._closed = False
        self._calls = BoundedCalls(ATTEMPT_TIMEOUT)
        # Until when the database need not be asked; 0 as long as it answers.
        self._asked_again_at = 0.0
        # Whether the last attempt got no answer at all.
        self._is_silent = False
        self._remains: dict[Remains, _End] = {}
        self._no_thread = RepeatedLog(logger)
        self._cut = RepeatedLog(logger)
        self._unconnected = RepeatedLog(logger)
        self._gone = RepeatedLog(logger)
        self._inherited = RepeatedLog(logger)
        self._forgot = RepeatedLog(logger)
        self._errors = RepeatedLog(logger)
        # Requests with a query that ran when the database was told to stop it, and which then ended by themselves;
        # attempts to tell it that failed; connections that were cut; and connections that it was told to end, those of
        # dead processes included.
        self.stops = self.failures = self.severed = self.killed = 0

    @property
    def running(self) -> int:
        """How many connections that were cut are not yet seen to have ended in the database. Any thread."""
        return len(self._remains)

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller runs in the stopping thread, or in one that asks the database for it."""
        return self._thread is threading.current_thread() or is_bounded_call()

    def stop(self, what: Stoppable) -> None:
        """Have it stopped soon. Any thread; returns at once."""
        task = _Stop(what, time.monotonic())
        self._add(task.since, lambda: self._go_on(task))

    def end(self, remains: Iterable[Remains]) -> None:
        """Have connections that nobody uses any more ended in the database. Any thread; returns at once."""
        for each in remains:
            self._remember(each)

    def do(self, errand: Callable[[], None]) -> None:
        """Have this called soon, when the database answers; nothing comes of it if it fails. Any thread."""
        self._add(time.monotonic(), lambda: self._try(errand))

    def repeat(self, errand: Callable[[], None], interval: float) -> None:
        """Have a method called now, and again so many seconds after it was done, until `close`. Any thread.

        It must not wait for the database. Its object may be forgotten, and is called no more then.
        """
        method = weakref.WeakMethod(errand)

        def run() -> None:
            if (errand := method()) is None:
                return
            try:
                errand()
            finally:
                self._add(time.monotonic() + interval, run, repeats=True)

        self._add(time.monotonic(), run, repeats=True)

    def close(self) -> None:
        """Let the thread end when nothing is left to do. Any thread."""
        with self._changed:
            self._closed = True
            self._tasks[:] = [task for task in self._tasks if not task.repeats]
            heapq.heapify(self._tasks)
            self._changed.notify()

    def start(self) -> None:
        """Start the thread, unless it runs. Any thread.

        It may be impossible for the moment. What is to be stopped waits then, and whoever needs a connection of the
        pool tries again.
        """
        with self._changed:
            if self._thread is None and not (self._closed and not self._tasks):
                thread = threading.Thread(target=self._work, name="threadbridge-stopper", daemon=True)
                try:
                    thread.start()
                except NOT_STARTED as error:
                    self.lacks_thread = True
                    self._no_thread.log(
                        logging.ERROR,
                        "cancelled queries cannot be stopped now, because no thread could be started: %s; trying "
                        "again when the next request needs a connection",
                        error,
                    )
                else:
                    # It does nothing yet: that takes the lock.
                    self._thread = thread
                    self.lacks_thread = False

    def _add(self, due: float, run: Callable[[], None], *, repeats: bool = False) -> None:
        with self._changed:
            if repeats and self._closed:
                return
            heapq.heappush(self._tasks, _Task(due, next(self._numbers), run, repeats))
            self._changed.notify()
        if self._thread is None:
            self.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._tasks or self._tasks[0].due > time.monotonic():
                    if not self._tasks and self._closed:
                        self._thread = None
                        return
                    self._changed.wait(self._tasks[0].due - time.monotonic() if self._tasks else None)
                task = heapq.heappop(self._tasks)
            try:
                task.run()
            except Exception as error:  # noqa: BLE001 - it is logged, and other queries must be stopped
                self._errors.log(
                    logging.ERROR, "error in the stopper thread; a cancelled query may still be running", exc_info=error
                )
            # What it is about may be forgotten, though this thread waits for the next one.
            del task

    # Requests that still have their connection.

    def _go_on(self, task: _Stop) -> None:
        if task.what.is_over:
            self.stops += task.hit
            return
        if time.monotonic() - task.since >= SEVER_AFTER:
            self._sever(task)
            return
        if task.again and self._may_ask(task.since + SEVER_AFTER):
            try:
                told = self._calls.call(task.what.stop)
            except StopFailed as error:
                self._note_failure(error)
            else:
                self._note_success()
                task.again = told.again
                task.hit = task.hit or told.hit
        pause, task.pause = task.pause, min(2 * task.pause, LONGEST_PAUSE)
        due = min(time.monotonic() + pause, task.since + SEVER_AFTER)
        if task.again:
            due = max(due, min(self._asked_again_at, task.since + SEVER_AFTER))
        self._add(due, lambda: self._go_on(task))

    def _sever(self, task: _Stop) -> None:
        remains = task.what.sever()
        if remains is None:
            self._add(time.monotonic() + LONGEST_PAUSE, lambda: self._go_on(task))
            return
        if not remains:
            if not task.what.is_over:
                self._unconnected.log(
                    logging.WARNING,
                    "request %s: cancelled %g s ago but still waiting for a new connection to the database",
                    task.what.name,
                    SEVER_AFTER,
                )
            return
        self.severed += 1
        numbers = " and ".join(str(each.number) for each in remains)
        self._cut.log(
            logging.WARNING,
            "request %s: cancelled %g s ago but still holds connection %s; cutting it, and killing it in the database "
            "when reachable",
            task.what.name,
            SEVER_AFTER,
            numbers,
        )
        self.end(remains)

    # Connections that may still be there in the database.

    def _remember(self, what: Remains) -> None:
        end = _End(time.monotonic())
        with self._changed:
            if what in self._remains:
                return
            self._remains[what] = end
            forgotten = next(iter(self._remains)) if len(self._remains) > MOST_REMAINS else None
            if forgotten is not None:
                del self._remains[forgotten]
        if forgotten is not None:
            self._forgot.log(
                logging.ERROR,
                "connection %s may still be running a query in the database, and is no longer checked: more than %d "
                "such connections are left",
                forgotten.number,
                MOST_REMAINS,
            )
        self._add(end.since, lambda: self._look_after(what, end))

    def _look_after(self, what: Remains, end: _End) -> None:
        if self._remains.get(what) is not end:
            return
        if time.monotonic() >= self._asked_again_at:
            try:
                has_ended = self._calls.call(what.end)
            except NoAnswer as error:
                self._note_failure(error)
            except StopFailed as error:
                # Perhaps it cannot be found there any more, which says nothing about others.
                self.failures += 1
                if time.monotonic() - end.since > LONGEST_SEARCH:
                    self._give_up(what, error)
                    return
                logger.debug("connection %s is not ended: %s", what.number, error)
            else:
                self._note_success()
                if has_ended:
                    self._note_end(what, end)
                    return
                if not end.told:
                    end.told = True
                    self.killed += 1
        pause, end.pause = end.pause, min(2 * end.pause, LONGEST_LOOK)
        self._add(max(time.monotonic() + pause, self._asked_again_at), lambda: self._look_after(what, end))

    def _forget(self, what: Remains) -> None:
        with self._changed:
            # The list may have been full meanwhile.
            self._remains.pop(what, None)

    def _give_up(self, what: Remains, error: StopFailed) -> None:
        self._forget(what)
        self._forgot.log(
            logging.ERROR,
            "connection %s may still be running a query in the database, and is no longer checked: it was not found "
            "for %g s: %s",
            what.number,
            LONGEST_SEARCH,
            error,
        )

    def _note_end(self, what: Remains, end: _End) -> None:
        self._forget(what)
        seconds = time.monotonic() - end.since
        if what.predecessor is None:
            self._gone.log(
                logging.WARNING,
                "connection %s has ended in the database%s, %.1f s after it was given up",
                *(what.number, ", killed on request" if end.told else "", seconds),
            )
        elif end.told:
            self._inherited.log(
                logging.WARNING,
                "connection %s of dead process %d has been killed in the database, %.1f s after it was found",
                *(what.number, what.predecessor, seconds),
            )

    # What the database answers.

    def _may_ask(self, latest: float) -> bool:
        """Whether to ask the database, for a request whose connection is cut at ``latest``."""
        now = time.monotonic()
        # Not if that would probably be waiting for too long: others are to be cut meanwhile.
        return now >= self._asked_again_at and not (self._is_silent and now > latest - ATTEMPT_TIMEOUT)

    def _try(self, errand: Callable[[], None]) -> None:
        if time.monotonic() < self._asked_again_at:
            return
        try:
            self._calls.call(errand)
        except StopFailed as error:
            logger.debug("not done: %s", error)

    def _note_failure(self, error: StopFailed) -> None:
        self.failures += 1
        if not self._asked_again_at:
            logger.error("cannot stop cancelled queries; trying again: %s", error)
        self._asked_again_at = time.monotonic() + OUTAGE_PAUSE
        self._is_silent = isinstance(error, NoAnswer)

    def _note_success(self) -> None:
        if self._asked_again_at:
            logger.warning("cancelled queries can be stopped again")
            self._asked_again_at = 0.0
            self._is_silent = False
