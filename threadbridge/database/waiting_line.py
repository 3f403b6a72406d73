"""The threads that wait for a connection of a pool, in the order of their arrival; each wait can be interrupted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.guard import Guard


class WaitingLine:
    """All members are used under the guard's lock.

    :param has_free: whether the pool can hand out a connection now.
    """

    def __init__(self, guard: Guard, has_free: Callable[[], bool]) -> None:
        self._guard = guard
        self._has_free = has_free
        # A place for each thread, the first in front.
        self.line: deque[object] = deque()

    def __len__(self) -> int:
        return len(self.line)

    def clear(self) -> None:
        """Forget all threads, in a forked process."""
        self.line.clear()

    def wait_turn(
        self, request: TrackedRequest | None, latest: float | None, too_late: Callable[[], Exception]
    ) -> None:
        """Return when it is this thread's turn to get a connection. Raises ``too_late()``, or as `wait`.

        :param latest: see `wait`.
        """
        # A request that holds a connection already may be the one that all others wait for.
        if self._has_free() and (not self.line or self._guard.holds(request)):
            return
        place = object()
        self.line.append(place)
        try:
            while not (self._has_free() and self.line[0] is place):
                if not self.wait(latest):
                    raise too_late()
        finally:
            self.line.remove(place)
            # There may be a connection for the next in line too.
            self._guard.lock.notify_all()

    def deadline_for(self, request: TrackedRequest | None) -> float | None:
        """Until when to wait for a pool that would itself raise an error at once: see `wait`.

        It is the request's deadline. Without a request there is no wait; nor if the request holds a connection, as it
        may be waiting for itself.
        """
        return 0.0 if request is None or self._guard.holds(request) else request.deadline

    def wait(self, latest: float | None) -> bool:
        """Wait until a connection may have come back; return whether that was in time.

        Raises `Guard.cancelled` as soon as the request is cancelled.

        :param latest: when to give up, by `time.monotonic`; None for never.
        """
        request, lock = current_or_none(), self._guard.lock
        timeout = None if latest is None else latest - time.monotonic()
        if request is None:
            return lock.wait(timeout)
        # Without waiting for a call of `_wake_all` under way, which waits for this lock.
        withdraw = request.on_cancel(self._wake_all, wait=False)
        try:
            if not request.cancelled and not lock.wait(timeout):
                return False
        finally:
            withdraw()
        if request.cancelled:
            # The notification may have been meant for another thread.
            lock.notify_all()
            raise self._guard.cancelled()
        return True

    def _wake_all(self) -> None:
        with self._guard.lock:
            self._guard.lock.notify_all()


class CountingLine(WaitingLine):
    """A line that itself counts the connections that the pool has handed out. Its own methods take the guard's lock.

    :param room: how many connections may be out at once; ``math.inf`` if that is unlimited.
    """

    def __init__(self, guard: Guard, room: Callable[[], float]) -> None:
        super().__init__(guard, lambda: len(self.out) + self.entering < room())
        # The ids of the connections that are out: one that the application forgets is closed.
        self.out: set[int] = set()
        # How many threads are about to get a connection from the pool.
        self.entering = 0

    def clear(self) -> None:
        super().clear()
        self.out, self.entering = set(), 0

    def enter(self, request: TrackedRequest | None, latest: float | None, too_late: Callable[[], Exception]) -> None:
        """Like `wait_turn`; `end_entering` must follow."""
        with self._guard.lock:
            self.wait_turn(request, latest, too_late)
            self.entering += 1

    def end_entering(self, connection: object | None) -> None:
        """Note that this thread has got a connection, or none."""
        with self._guard.lock:
            self.entering -= 1
            if connection is None:
                self._guard.lock.notify_all()
            else:
                self.out.add(id(connection))

    def leave(self, connection: object) -> None:
        """Note that a connection no longer counts as handed out, if it still does."""
        with self._guard.lock:
            if id(connection) in self.out:
                self.out.discard(id(connection))
                self._guard.lock.notify_all()
