"""The request that a worker serves, as the application sees it and as the bridge tracks it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.replicas import Replica
from threadbridge.crossing.routes import Route
from threadbridge.crossing.trace import RequestTrace
from threadbridge.sql.statements import Statements

logger = logging.getLogger("threadbridge")
_failed = RepeatedLog(logger)

_thread: Final = threading.local()
# The id and the trace of the request, for logs: wherever the application takes its context (`contextvars`), such as
# `asyncio.to_thread` does.
_named: ContextVar[tuple[str, RequestTrace | None]] = ContextVar("threadbridge_request", default=("", None))


class RunningRequest:
    """What an application may use of the request it serves.

    `id` names the request in the logs. `deadline` is the time, by `time.monotonic`, by which it must be answered, or
    None. `cancelled` becomes true when the client has left, the deadline has passed, or an operator has stopped it.

    A lock guards the callbacks and the writing of ``cancelled``. It is reentrant and belongs to this request alone:
    under it, garbage collection may hand connections back, which takes the pool's lock and this one again.
    """

    def __init__(self, request_id: str, deadline: float | None) -> None:
        self.id = request_id
        self.deadline = deadline
        self.cancelled = False
        self._callbacks: dict[object, Callable[[], object]] = {}
        # The key of the callback that is being called, and the thread that calls it.
        self._calling: object | None = None
        self._caller = 0
        self._has_ended = False
        self._lock = threading.RLock()
        # Made by the first thread that waits for a callback to end: it costs more than the rest, and few wait.
        self._called: threading.Condition | None = None

    def on_cancel(self, callback: Callable[[], object], *, wait: bool = True) -> Callable[[], None]:
        """Call ``callback()`` once when the request is cancelled. Worker side.

        The callback runs in a cancelling thread, neither the loop's nor a worker's, and may block for a moment, for
        example to stop what the worker waits for. If the request has been cancelled already, it runs at once in the
        calling thread. Its exceptions are logged.

        Returns a function that removes the callback. Once that has returned, or the application's call has ended, the
        callback will not be called and, unless ``wait`` is false, is not running.
        """
        key = object()
        with self._lock:
            if self._has_ended:
                return lambda: None
            if not self.cancelled:
                self._callbacks[key] = callback
                return lambda: self._remove(key, wait)
        self._call(callback)
        return lambda: None

    def _remove(self, key: object, wait: bool) -> None:
        with self._lock:
            self._callbacks.pop(key, None)
            # A callback may remove itself.
            while wait and self._calling is key and self._caller != threading.get_ident():
                self._wait_for_call()

    def _wait_for_call(self) -> None:
        if self._called is None:
            self._called = threading.Condition(self._lock)
        self._called.wait()

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:  # noqa: BLE001 - SystemExit too: the remaining callbacks must be called
            _failed.log(logging.ERROR, "request %s: a callback of on_cancel failed", self.id, exc_info=error)


class TrackedRequest(RunningRequest):
    """A running request with what the bridge keeps of it.

    `route` is None if nothing is learned from it. `statements` are those it has sent to the database. `is_answered`
    becomes true when its response begins: it has no deadline from then on. The worker calls the functions in `at_end`
    when the application's call has ended. `lane` is the one whose thread runs it, and `also_in` are the lanes of other
    pools that it has asked for a connection; the loop sets the first before the request runs, the worker the second.
    `replica` is None unless the request may read from that of its lane, and `changed_at` is when its client has last
    changed something; the loop sets both before the request runs.
    `trace` is None unless the request is recorded, or continues a trace.
    """

    lane: Lane | None = None
    also_in: tuple[Lane, ...] = ()
    changed_at = 0.0
    trace: RequestTrace | None = None

    def __init__(self, request_id: str, deadline: float | None, route: Route | None = None, client: str = "") -> None:
        super().__init__(request_id, deadline)
        self.route = route
        self.client = client
        self.is_answered = False
        self.at_end: dict[object, Callable[[], None]] = {}
        self.statements = Statements()
        # Not above: mypyc leaves out defaults of None where the type is a protocol.
        self.replica: Replica | None = None
        # Whether it reads from the replica; None before that matters. Owned by the worker.
        self._is_on_replica: bool | None = None

    def reads_replica(self) -> bool:
        """Return whether the request reads from its lane's replica. Worker side.

        The first call decides for the whole request, unless `leave_replica` is called.
        """
        if self.replica is None:
            return False
        if self._is_on_replica is None:
            self._is_on_replica = self.replica.begin(self.changed_at)
        return self._is_on_replica

    def leave_replica(self) -> None:
        """Read from the primary from now on, since the replica cannot be reached. Worker side."""
        if self._is_on_replica and self.replica is not None:
            self.replica.leave()
        self._is_on_replica = False

    def cancel(self) -> None:
        """Set `cancelled` and call the callbacks. In a cancelling thread."""
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

    def enter(self) -> None:
        """Make this the thread's current request. Worker side."""
        _thread.request = self
        _named.set((self.id, self.trace))

    def leave(self) -> None:
        """End the application's call: no callback runs after this. Worker side."""
        _thread.request = None
        _named.set(("", None))
        with self._lock:
            self._has_ended = True
            self._callbacks.clear()
            while self._calling is not None:
                self._wait_for_call()
        for finish in self.at_end.values():
            finish()


def leave_request() -> None:
    """Forget the thread's request, in a forked process."""
    _thread.request = None
    _thread.is_cancelling = False
    _named.set(("", None))


forks.calls_first(leave_request)


def current_or_none() -> TrackedRequest | None:
    """Return the request that this thread serves, if there is one. Any thread."""
    request: TrackedRequest | None = getattr(_thread, "request", None)
    return request


def names_for_logs() -> tuple[str, str]:
    """Return the id of the request for which this code runs, and its ``traceparent``; each is "" if there is none.

    In a thread that the application has started, this is known if the thread runs in the request's context: see
    `contextvars.copy_context`. Any thread.
    """
    request_id, trace = _named.get()
    return request_id, "" if trace is None else trace.traceparent


def is_cancelled() -> bool:
    """Return whether this thread serves a request that was cancelled. Any thread."""
    request = current_or_none()
    return request is not None and request.cancelled


def is_cancelling() -> bool:
    """Return whether this thread is calling the callbacks of a cancelled request. Any thread."""
    return bool(getattr(_thread, "is_cancelling", False))


def on_replica() -> bool:
    """Return whether the request that this thread serves reads from its lane's replica; see docs/replicas.md.

    For applications that choose their connections themselves. The answer is the same for the whole request. False in
    threads that serve no request. Worker side.
    """
    request = current_or_none()
    return request is not None and request.reads_replica()


def current() -> RunningRequest:
    """Return the request that this thread serves. Worker side.

    Raises ``RuntimeError`` in any other thread, including threads that the application starts.
    """
    request = current_or_none()
    if request is None:
        raise RuntimeError("no request runs in this thread; call current() in the thread that called the application")
    return request
