"""The request that a worker runs, as the application sees it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.routes import Route
from threadbridge.sql.statements import Statements

logger = logging.getLogger("threadbridge")
_failed = RepeatedLog(logger)

_thread = threading.local()


class RunningRequest:
    """What application code may ask of the request it serves, and be told about it.

    `id` names the request in the logs. `deadline` is the time, by `time.monotonic`, by which it must be answered, or
    None. `cancelled` turns true, and stays so, when nobody waits for the answer any more.

    `route`, `client`, `statements`, `is_answered` and `at_end` are the bridge's: what it learns about the requests of
    this kind, the client whose share of the server it takes, what it asks of the database, whether its response has
    begun, so that it has no deadline any more, and what is to be done by the worker when the application's call has
    ended.

    The callbacks are guarded by a lock; ``cancelled`` is written under it and may be read by anyone. It is re-entrant
    and the request's own: garbage may be collected under it, and then connections be handed back, which takes the
    pool's lock and callbacks.
    """

    def __init__(self, request_id: str, deadline: float | None, route: Route | None = None, client: str = "") -> None:
        self.id = request_id
        self.deadline = deadline
        self.route = route
        self.client = client
        self.cancelled = False
        self.is_answered = False
        self.at_end: dict[object, Callable[[], None]] = {}
        self.statements = Statements()
        self._callbacks: dict[object, Callable[[], object]] = {}
        # The key of the callback that is being called, and the thread that calls it.
        self._calling: object | None = None
        self._caller = 0
        self._has_ended = False
        self._lock = threading.RLock()
        # Made by whoever waits for a callback's end, which is rare; making one costs more than the rest.
        self._called: threading.Condition | None = None

    def on_cancel(self, callback: Callable[[], object], *, wait: bool = True) -> Callable[[], None]:
        """Have ``callback()`` called once when the request is cancelled; at once if it is already. Worker side.

        It is called in a thread of its own kind, neither the loop's nor a worker's, and may block for a moment: say, to
        stop what the worker waits for. What it raises is logged. Returns a function that takes the callback back. Once
        that has returned the callback is not running, unless ``wait`` is false, and will not be called; the same holds
        when the application's call has ended.
        """
        key = object()
        with self._lock:
            if self._has_ended:
                return lambda: None
            if not self.cancelled:
                self._callbacks[key] = callback
                return lambda: self._take_back(key, wait)
        self._call(callback)
        return lambda: None

    def _take_back(self, key: object, wait: bool) -> None:
        with self._lock:
            self._callbacks.pop(key, None)
            # A callback may take back itself.
            while wait and self._calling is key and self._caller != threading.get_ident():
                self._wait_for_call()

    def _wait_for_call(self) -> None:
        if self._called is None:
            self._called = threading.Condition(self._lock)
        self._called.wait()

    def cancel(self) -> None:
        """Tell the application that nobody waits any more. A cancelling thread."""
        _thread.is_cancelling = True
        try:
            with self._lock:
                if self.cancelled:
                    return
                self.cancelled = True
            while (callback := self._begin_call()) is not None:
                try:
                    self._call(callback)
                finally:
                    self._end_call()
        finally:
            _thread.is_cancelling = False

    def _begin_call(self) -> Callable[[], object] | None:
        with self._lock:
            if not self._callbacks:
                return None
            self._calling = next(iter(self._callbacks))
            self._caller = threading.get_ident()
            return self._callbacks.pop(self._calling)

    def _end_call(self) -> None:
        with self._lock:
            self._calling = None
            if self._called is not None:
                self._called.notify_all()

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:  # noqa: BLE001 - also SystemExit: the callbacks behind it must be called
            _failed.log(logging.ERROR, "request %s: a callback of on_cancel failed", self.id, exc_info=error)

    def enter(self) -> None:
        """Make this the thread's current request. Worker side."""
        _thread.request = self

    def leave(self) -> None:
        """The application's call has ended: call nobody any more. Worker side."""
        _thread.request = None
        with self._lock:
            self._has_ended = True
            self._callbacks.clear()
            while self._calling is not None:
                self._wait_for_call()
        for finish in self.at_end.values():
            finish()


def leave_request() -> None:
    """This thread serves no request any more: it is a forked process's."""
    _thread.request = None
    _thread.is_cancelling = False


forks.calls_first(leave_request)


def current_or_none() -> RunningRequest | None:
    """The request that this thread serves, if it serves one. Any thread."""
    request: RunningRequest | None = getattr(_thread, "request", None)
    return request


def is_cancelled() -> bool:
    """Whether this thread serves a request that was cancelled: nobody waits for its answer. Any thread."""
    request = current_or_none()
    return request is not None and request.cancelled


def is_cancelling() -> bool:
    """Whether this thread is telling an application of a cancellation. Any thread."""
    cancelling: bool = getattr(_thread, "is_cancelling", False)
    return cancelling


def current() -> RunningRequest:
    """The request that this thread serves. Worker side.

    Raises ``RuntimeError`` in any other thread, also in those that the application starts.
    """
    request = current_or_none()
    if request is None:
        raise RuntimeError("no request runs in this thread; call current() in the thread that called the application")
    return request
