"""Requests wait for a connection of a full pool: in the order in which they came, and only until they are cancelled."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from threadbridge.crossing.current import TrackedRequest, current_or_none


class WaitingLine:
    """Threads that wait for a connection, in the order of their arrival. All state is guarded by the pool's condition.

    :param condition: the pool's, notified whenever a connection comes back.
    :param has_free: whether a connection may be handed out; called under the condition.
    :param holds_any: whether the request holds a connection already; called under the condition.
    :param is_blocking: whether threads wait for as long as it takes, even those that hold a connection.
    :param exhausted: the pool's error for "no connection is free".
    :param cancelled: gives the error for a request that was cancelled.
    """

    def __init__(
        self,
        condition: threading.Condition,
        has_free: Callable[[], bool],
        holds_any: Callable[[TrackedRequest], bool],
        *,
        is_blocking: bool,
        exhausted: type[Exception],
        cancelled: Callable[[], Exception],
    ) -> None:
        self._condition = condition
        self._has_free = has_free
        self._holds_any = holds_any
        self._is_blocking = is_blocking
        self._exhausted = exhausted
        self._cancelled = cancelled
        self.places: deque[object] = deque()

    def wait_turn(self, request: TrackedRequest | None) -> None:
        """Wait for a connection, behind those that came before. Under the condition. Raises as `wait` does."""
        # A request that holds a connection already may be the one that all others wait for.
        if self._has_free() and (not self.places or (request is not None and self._holds_any(request))):
            return
        place = object()
        self.places.append(place)
        try:
            while not (self._has_free() and self.places[0] is place):
                self.wait()
        finally:
            self.places.remove(place)
            # There may be a connection for the next in line too.
            self._condition.notify_all()

    def wait(self) -> None:
        """Wait until a connection may have come back. Under the condition.

        A request that holds no connection waits until its deadline even where the pool is not blocking, as another
        request will give one back. A request that holds one may be waiting for itself. Raises ``exhausted``, or
        ``cancelled()`` as soon as the request is cancelled.
        """
        request = current_or_none()
        if not self._is_blocking and (request is None or self._holds_any(request)):
            raise self._exhausted
        if request is None:
            self._condition.wait()
            return
        # Without waiting for a call of `_wake_all` under way, which waits for this condition.
        withdraw = request.on_cancel(self._wake_all, wait=False)
        try:
            if not request.cancelled:
                timeout = None if self._is_blocking or request.deadline is None else request.deadline - time.monotonic()
                if not self._condition.wait(timeout):
                    raise self._exhausted
        finally:
            withdraw()
        if request.cancelled:
            # The notification may have been meant for another thread.
            self._condition.notify_all()
            raise self._cancelled()

    def _wake_all(self) -> None:
        with self._condition:
            self._condition.notify_all()
