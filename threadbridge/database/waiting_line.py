"""The threads that wait for a connection of a pool, in the order of their arrival; each wait can be interrupted."""

from __future__ import annotations

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
        self._line: deque[object] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def clear(self) -> None:
        """Forget all threads, in a forked process."""
        self._line.clear()

    def wait_turn(self, request: TrackedRequest | None, wait: Callable[[], None]) -> None:
        """Return when it is this thread's turn to get a connection; call ``wait()`` until then.

        ``wait`` returns when a connection may have come back, see `wait`; what it raises goes through.
        """
        # A request that holds a connection already may be the one that all others wait for.
        if self._has_free() and (not self._line or self._guard.holds(request)):
            return
        place = object()
        self._line.append(place)
        try:
            while not (self._has_free() and self._line[0] is place):
                wait()
        finally:
            self._line.remove(place)
            # There may be a connection for the next in line too.
            self._guard.lock.notify_all()

    def wait(self, timeout: float | None) -> bool:
        """Wait until a connection may have come back; return whether that was within ``timeout`` seconds.

        Raises `Guard.cancelled` as soon as the request is cancelled.
        """
        request, lock = current_or_none(), self._guard.lock
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
