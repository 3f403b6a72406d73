"""The request that a worker runs, as the application sees it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from threadbridge.routes import Route

logger = logging.getLogger("threadbridge")

_worker = threading.local()


class RunningRequest:
    """What application code may ask of the request it serves, and be told about it.

    `id` names the request in the logs. `deadline` is the time, by `time.monotonic`, by which it must be answered, or
    None. `cancelled` turns true, and stays so, when nobody waits for the answer any more.

    `route` is the bridge's: what it learns about the requests of this kind.

    The callbacks are guarded by a lock; ``cancelled`` is written under it and may be read by anyone.
    """

    def __init__(self, request_id: str, deadline: float | None, route: Route | None = None) -> None:
        self.id = request_id
        self.deadline = deadline
        self.route = route
        self.cancelled = False
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._lock = threading.Lock()

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have ``callback()`` called once when the request is cancelled; at once if it is already. Worker side.

        It is called in a thread of its own kind, neither the loop's nor a worker's, and may block for a moment: say, to
        stop what the worker waits for. Returns a function that takes the callback back. After the application's call
        has ended nothing is called any more.
        """
        with self._lock:
            if not self.cancelled:
                key = id(callback)
                self._callbacks[key] = callback
                return lambda: self._remove(key)
        callback()
        return lambda: None

    def _remove(self, key: int) -> None:
        with self._lock:
            self._callbacks.pop(key, None)

    def cancel(self) -> None:
        """Tell the application that nobody waits any more. A cancelling thread."""
        with self._lock:
            self.cancelled = True
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("request %s: a callback of on_cancel failed", self.id)

    def enter(self) -> None:
        """Make this the thread's current request. Worker side."""
        _worker.request = self

    def leave(self) -> None:
        """The application's call has ended: call nobody any more. Worker side."""
        _worker.request = None
        with self._lock:
            self._callbacks.clear()


def current_or_none() -> RunningRequest | None:
    """The request that this thread serves, if it serves one. Any thread."""
    request: RunningRequest | None = getattr(_worker, "request", None)
    return request


def current() -> RunningRequest:
    """The request that this thread serves. Worker side.

    Raises ``RuntimeError`` in any other thread, also in those that the application starts.
    """
    request = current_or_none()
    if request is None:
        raise RuntimeError("no request runs in this thread; call current() in the thread that called the application")
    return request
