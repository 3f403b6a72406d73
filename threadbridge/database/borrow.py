"""A connection that a request holds, and how it is taken from the request when that is cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, Protocol

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.driver import Database
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.stopper import ATTEMPT_TIMEOUT, Orphan, StopResult


class HeldConnection(Protocol):
    """A pool's connection."""

    # Several if the pool shares connections. Under the pool's lock.
    borrows: list[Borrow]
    # Whether it is closed when it comes back, instead of being handed out again.
    must_close: bool
    is_idle: bool
    # Whether it was cut and no longer counts as handed out.
    is_abandoned: bool

    def driver_connections(self) -> Collection[DriverConnection]:
        """The driver's connections that it uses: two while a broken one is replaced. Any thread; takes no lock."""

    def sever(self) -> Sequence[Orphan]:
        """See `DriverConnection.sever`."""


class Borrow:
    """A connection that a request holds: a `Stoppable`.

    A lock guards `is_over`, `_is_executing`, `_is_rolling_back`, `_is_cut` and `_attempts`.
    """

    def __init__(
        self,
        connection: HeldConnection,
        request: TrackedRequest,
        may_stop: Callable[[Borrow], bool],
        cancelled: Callable[[], Exception],
    ) -> None:
        self.connection = connection
        self.request = request
        self.name = request.id
        self.is_over = False
        self.withdraw_callback: Callable[[], None] = lambda: None
        # Whether a statement was refused because the request is cancelled.
        self.has_refused = False
        # Whether the request's thread is not expected to come back. Guarded by the pool's lock.
        self.is_abandoned = False
        self._may_stop = may_stop
        self._cancelled = cancelled
        self._is_executing = self._is_rolling_back = False
        # Whether `sever` has cut the connection.
        self._is_cut = False
        # An event for each attempt to stop a statement, set when the attempt has ended.
        self._attempts: list[threading.Event] = []
        self._lock = threading.Lock()

    def execute(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call the method that executes a statement, unless the request is cancelled."""
        with self._lock:
            self._is_executing = True
        try:
            # Only now: either the stopper sees that a statement is executing, and repeats its attempts, or the request
            # was cancelled before, which is seen here.
            if self.request.cancelled:
                self.refuse()
            return method(*args)
        finally:
            with self._lock:
                self._is_executing = False

    def unstopped(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call the method that rolls back, once attempts under way have ended, and let none begin meanwhile."""
        with self._lock:
            self._is_rolling_back = True
        try:
            self._wait_for_attempts()
            return method(*args)
        finally:
            with self._lock:
                self._is_rolling_back = False

    def refuse(self) -> NoReturn:
        """Raise the driver's error for a stopped statement."""
        self.has_refused = True
        raise self._cancelled()

    @property
    def where(self) -> tuple[Database, str] | None:
        return next(((each.database, each.server) for each in self.connection.driver_connections()), None)

    def stop_query(self) -> StopResult:
        # On a connection that other requests use too, the statement may be theirs.
        if not self._may_stop(self):
            return StopResult(was_running=False, try_again=True)
        with self._lock:
            if self.is_over or self._is_cut:
                return StopResult(was_running=False, try_again=False)
            if self._is_rolling_back:
                return StopResult(was_running=False, try_again=True)
            # Read before the attempt, as a statement that is executing may reach the server only after it. If none is
            # executing, one may still be sending its rows: the attempt stops that one, and no other begins.
            try_again = self._is_executing
            # All of them, as one may be closed already. Read now: once the borrow has ended, they may be replaced.
            targets = list(self.connection.driver_connections())
            attempt = threading.Event()
            self._attempts.append(attempt)
        try:
            return StopResult(True in [each.stop_query(waits=try_again) for each in targets], try_again)
        finally:
            attempt.set()

    def sever(self) -> Sequence[Orphan] | None:
        if not self._may_stop(self):
            return () if self.is_over else None
        orphans = self.connection.sever()
        with self._lock:
            self._is_cut = True
            for attempt in self._attempts:
                # No statement follows on these connections, so `end` need not wait for attempts that hang.
                attempt.set()
        return orphans

    def end(self) -> None:
        """End the borrow once attempts under way have ended. Any thread that may wait."""
        with self._lock:
            self.is_over = True
        if self._attempts:
            self._wait_for_attempts()
        self.withdraw_callback()

    def _wait_for_attempts(self) -> None:
        latest = time.monotonic() + ATTEMPT_TIMEOUT
        if not all(attempt.wait(latest - time.monotonic()) for attempt in self._attempts):
            # One may still come, and must not stop the next statement on the connection.
            self.connection.sever()


def borrow_of(connection: HeldConnection, request: TrackedRequest | None) -> Borrow | None:
    """The request's borrow of this connection, if it holds it. Any thread."""
    for borrow in tuple(connection.borrows):
        if borrow.request is request:
            return borrow
    return None
