"""The thread that stops queries: it asks the database, looks again until nothing runs, and gives up within bounds."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import Protocol

from threadbridge.database import StopFailed

logger = logging.getLogger("threadbridge")

# A statement may be sent just after a stop that found nothing to stop, so look again soon; the pauses double.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0
# The pauses add up to some 20 s. What has not stopped by then does not react.
ATTEMPTS = 16
# While the database cannot be reached only this often one attempt is made, for whichever request.
OUTAGE_PAUSE = 1.0


class Stoppable(Protocol):
    """Something in the database that can be stopped."""

    def stop(self) -> bool:
        """Try to; whether to look again. Raises `StopFailed`."""


class Stopper:
    """Stops what it is given, in a daemon thread that is started when there is something to stop.

    The heap of what is due is guarded by a condition, which is not held while the database is asked.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, int, Stoppable]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._reachable_from = 0.0

    def stop(self, what: Stoppable) -> None:
        """Have it stopped soon. Any thread; returns at once."""
        self._add(time.monotonic(), 0, what)

    def close(self) -> None:
        """End the thread; what is not stopped by then goes on. Any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _add(self, due: float, attempt: int, what: Stoppable) -> None:
        with self._changed:
            if self._closed:
                return
            heapq.heappush(self._due, (due, next(self._numbers), attempt, what))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="threadbridge-stopper", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                _, _, attempt, what = heapq.heappop(self._due)
            self._attempt(attempt, what)

    def _attempt(self, attempt: int, what: Stoppable) -> None:
        now = time.monotonic()
        if now < self._reachable_from:
            self._add(self._reachable_from, attempt, what)
            return
        try:
            again = what.stop()
        except StopFailed as error:
            if not self._reachable_from:
                logger.error("cannot stop queries that nobody waits for; they go on for now: %s", error)
            self._reachable_from = time.monotonic() + OUTAGE_PAUSE
            again = True
        else:
            if self._reachable_from:
                logger.warning("queries that nobody waits for can be stopped again")
                self._reachable_from = 0.0
        if again and attempt < ATTEMPTS:
            self._add(time.monotonic() + min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE), attempt + 1, what)
