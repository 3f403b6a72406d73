"""Calls to one database that may never return: made in turn, and alongside one that is late."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from threadbridge.common.threads import NOT_STARTED
from threadbridge.database.driver import StopFailed
from threadbridge.database.stopper_thread import NAME, StopperThread

logger = logging.getLogger("threadbridge")

# Seconds after which a call is late; most take a millisecond.
LATE_AFTER = 0.03
# How many calls may be under way at a time if all but the last are late; each may need its own control connection.
AT_ONCE = 4
# How many threads there may be for a database, including those of abandoned calls.
MAX_THREADS = 8
# Seconds between two attempts while the database does not answer.
OUTAGE_PAUSE = 1.0


class NoAnswer(StopFailed):
    """A call took too long and was abandoned."""


@dataclass(eq=False)
class _Call:
    function: Callable[[], Any]
    done: Callable[[Any], None]
    can_wait: bool
    began: float = 0.0


class _Caller(threading.Thread):
    """A thread that makes calls."""

    def __init__(self, work: Callable[[_Caller], None]) -> None:
        super().__init__(target=work, args=(self,), name=f"{NAME}-call", daemon=True)
        # The call under way.
        self.call: _Call | None = None
        self.is_abandoned = False


class BoundedCalls:
    """Gives each call ``timeout`` seconds, as the application may connect without a timeout.

    One thread makes the calls, and ends after the last. While a call is late, another thread makes the next ones. After
    a failure, only one call is under way at a time; if it fails too, calls are dropped for `OUTAGE_PAUSE`.

    Once `AT_ONCE` calls are late, none is made until all of these have ended: they may be the server's trouble. MariaDB
    takes 2 s for some KILLs of a SLEEP, and for each that comes meanwhile.

    The stopper's thread calls the methods and owns the state. A lock guards what the other threads change: the waiting
    calls, each thread's call, and how many calls are under way.

    :param name: the database, in the log.
    """

    def __init__(self, schedule: StopperThread, name: str, timeout: float) -> None:
        self._schedule = schedule
        self._name = name
        self._timeout = timeout
        # When the database may be asked again after a failure; 0 while it answers.
        self.retry_at = 0.0
        self._succeeded_at = 0.0
        # How many calls may be under way now.
        self._limit = AT_ONCE
        self._waiting: deque[_Call] = deque()
        # Those that can wait until no other is waiting or under way.
        self._last: deque[_Call] = deque()
        self._under_way = 0
        # Whether no call is made until those under way have ended.
        self._is_full = False
        self._callers: list[_Caller] = []
        self._abandoned: list[_Caller] = []
        self._will_look = False
        self._lock = threading.Lock()

    @property
    def is_unused(self) -> bool:
        """Whether nothing is under way, and the database is not known to be out of reach."""
        return not (self._callers or self._abandoned or self._waiting or self._last or self.retry_at)

    def call(self, function: Callable[[], Any], done: Callable[[Any], None], *, can_wait: bool = False) -> None:
        """Call the function soon, in another thread, and then ``done`` in the stopper's thread.

        ``done`` gets the result; `NoAnswer` if it took too long, otherwise the `StopFailed` that was raised; or None if
        the call was not made, because the database does not answer.

        :param can_wait: whether other calls come first. Such a call's failure says nothing about the database, unless
            it is `NoAnswer`.
        """
        if time.monotonic() < self.retry_at:
            done(None)
            return
        with self._lock:
            (self._last if can_wait else self._waiting).append(_Call(function, done, can_wait))
        self._look()

    def _look(self) -> None:
        """Abandon calls that take too long; start a thread if calls wait and none will soon make them."""
        now = time.monotonic()
        for call in self._abandon(now):
            self._end(call, NoAnswer(f"no answer within {self._timeout:g} s"))
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        while (self._waiting or self._last) and not self._callers:
            if self._start():
                break
        if self._waiting and not self._is_full and self._all_late(now):
            if len(self._callers) < self._limit:
                self._start()
            elif len(self._callers) >= AT_ONCE:
                with self._lock:
                    self._is_full = True
        if self._callers and not self._will_look:
            self._will_look = True
            self._schedule.add(now + LATE_AFTER, self._look_again)

    def _look_again(self) -> None:
        self._will_look = False
        self._look()

    def _abandon(self, now: float) -> list[_Call]:
        """Abandon the threads whose calls take too long; returns the calls."""
        with self._lock:
            found = [
                (each, each.call)
                for each in self._callers
                if each.call is not None and now >= each.call.began + self._timeout
            ]
            for caller, _ in found:
                caller.is_abandoned = True
                self._under_way -= 1
        for caller, _ in found:
            self._callers.remove(caller)
            self._abandoned.append(caller)
        return [call for _, call in found]

    def _all_late(self, now: float) -> bool:
        with self._lock:
            return all(each.call is not None and now >= each.call.began + LATE_AFTER for each in self._callers)

    def _start(self) -> bool:
        """Start a thread; returns whether it could be started. If no other is left, the next call fails otherwise."""
        if not self._callers:
            with self._lock:
                self._is_full = False
        count = len(self._callers) + len(self._abandoned)
        reason = f"{count} earlier attempts have not returned"
        if count < MAX_THREADS:
            caller = _Caller(self._work)
            try:
                caller.start()
            except NOT_STARTED as error:
                reason = f"no thread for it: {error}"
            else:
                self._callers.append(caller)
                return True
        if not self._callers:
            with self._lock:
                call = (self._waiting or self._last).popleft()
            call.can_wait = False
            self._end(call, StopFailed(reason))
        return False

    # The thread that makes calls.

    def _work(self, caller: _Caller) -> None:
        while (call := self._next(caller)) is not None:
            outcome: Any
            try:
                outcome = call.function()
            except BaseException as error:  # noqa: BLE001 - whatever the application's function raises
                outcome = error if isinstance(error, StopFailed) else StopFailed(repr(error))
            with self._lock:
                caller.call = None
                if caller.is_abandoned:
                    return
                self._under_way -= 1
            self._schedule.add(time.monotonic(), partial(self._end, call, outcome))
            if isinstance(outcome, StopFailed):
                # Whether the next call is made is for the stopper's thread to decide.
                break
        self._schedule.add(time.monotonic(), partial(self._leave, caller))

    def _next(self, caller: _Caller) -> _Call | None:
        with self._lock:
            waiting = self._waiting if self._waiting or self._under_way else self._last
            if self._is_full or not waiting:
                return None
            caller.call = call = waiting.popleft()
            self._under_way += 1
            call.began = time.monotonic()
            return call

    # What the calls say about the database.

    def _leave(self, caller: _Caller) -> None:
        self._callers.remove(caller)
        self._look()

    def _end(self, call: _Call, outcome: object) -> None:
        if not isinstance(outcome, StopFailed):
            self._note_success()
        elif isinstance(outcome, NoAnswer) or not call.can_wait:
            self._note_failure(call, outcome)
        call.done(outcome)

    def _note_success(self) -> None:
        self._succeeded_at = time.monotonic()
        self._limit = AT_ONCE
        if self.retry_at:
            logger.warning("cancelled queries can be stopped again in %s", self._name)
            self.retry_at = 0.0

    def _note_failure(self, call: _Call, error: StopFailed) -> None:
        if self._succeeded_at >= call.began > 0.0:
            # The database has answered others since.
            return
        self._limit = 1
        with self._lock:
            if self._under_way:
                # It may do so yet. Perhaps it only refuses new connections.
                return
            dropped = [*self._waiting, *self._last]
            self._waiting.clear()
            self._last.clear()
        if not self.retry_at:
            logger.error("cannot stop cancelled queries in %s; trying again: %s", self._name, error)
        self.retry_at = time.monotonic() + OUTAGE_PAUSE
        for each in dropped:
            each.done(None)
