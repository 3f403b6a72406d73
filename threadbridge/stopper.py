"""The thread that stops queries: it asks the database, looks again until nothing runs, and gives up within bounds."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from threadbridge.database import StopFailed

logger = logging.getLogger("threadbridge")

# A statement may be sent just after a stop that found nothing to stop, so look again soon; the pauses double.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0
# What has been told to stop and has not after this many seconds does not react.
GIVE_UP_AFTER = 20.0
# While the database cannot be asked only this often one attempt is made, for whichever request.
OUTAGE_PAUSE = 1.0
# After this many seconds of such attempts the worker is set free, whatever the database goes on doing.
SEVER_AFTER = 5.0


class Stoppable(Protocol):
    """Something in the database that can be stopped."""

    def stop(self) -> bool | None:
        """Try to; whether to look again, or None if it has ended by itself. Raises `StopFailed`."""

    def sever(self) -> None:
        """Let nobody wait for it any more, without the database's help."""


@dataclass(order=True)
class _Task:
    due: float
    number: int
    since: float = field(compare=False)
    pause: float = field(compare=False)
    what: Stoppable = field(compare=False)


class Stopper:
    """Stops what it is given, in a daemon thread that lives as long as there is something to stop.

    The heap of what is due is guarded by a condition, which is not held while the database is asked.
    """

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # The thread's own: until when the database need not be asked; 0 as long as it answers.
        self._asked_again_at = 0.0
        # How often the database was told to stop a query, and how often it could not be told. Written by the thread.
        self.stops = self.failures = 0

    def stop(self, what: Stoppable) -> None:
        """Have it stopped soon. Any thread; returns at once."""
        now = time.monotonic()
        self._add(_Task(now, next(self._numbers), now, FIRST_PAUSE, what))

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller runs in the stopping thread."""
        return self._thread is threading.current_thread()

    def _add(self, task: _Task) -> None:
        with self._changed:
            heapq.heappush(self._tasks, task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="threadbridge-stopper", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._tasks and (pause := self._tasks[0].due - time.monotonic()) > 0:
                    self._changed.wait(pause)
                if not self._tasks:
                    self._thread = None
                    return
                task = heapq.heappop(self._tasks)
            try:
                self._attempt(task)
            except Exception:
                logger.exception("a query that nobody waits for goes on: stopping it failed")

    def _attempt(self, task: _Task) -> None:
        if time.monotonic() < self._asked_again_at:
            self._postpone(task)
            return
        try:
            again = task.what.stop()
        except StopFailed as error:
            self.failures += 1
            if not self._asked_again_at:
                logger.error("cannot stop queries that nobody waits for; trying again: %s", error)
            self._asked_again_at = time.monotonic() + OUTAGE_PAUSE
            self._postpone(task)
            return
        if again is not None:
            self.stops += 1
        if again is not None and self._asked_again_at:
            logger.warning("queries that nobody waits for can be stopped again")
            self._asked_again_at = 0.0
        now = time.monotonic()
        if again and now - task.since < GIVE_UP_AFTER:
            self._add(_Task(now + task.pause, task.number, task.since, min(2 * task.pause, LONGEST_PAUSE), task.what))

    def _postpone(self, task: _Task) -> None:
        if time.monotonic() - task.since < SEVER_AFTER:
            self._add(_Task(self._asked_again_at, next(self._numbers), task.since, FIRST_PAUSE, task.what))
        else:
            task.what.sever()
