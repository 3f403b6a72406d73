"""Which requests hold which connections of a pool, and how a connection is taken from a cancelled request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol

from threadbridge.crossing.current import RunningRequest, current_or_none
from threadbridge.database.stopper import ATTEMPT_TIMEOUT, Orphan, Stopper, StopResult


class HeldConnection(Protocol):
    """What this module needs of a pool's connection. `Borrows` owns the attributes, under the pool's lock.

    :param borrows: the requests that hold it; several if the pool shares connections.
    :param must_close: whether it is closed when it comes back, instead of being handed out again.
    :param is_idle: whether it has come back to the pool and was not handed out since.
    :param is_abandoned: whether it was cut and no longer counts as handed out.
    """

    borrows: list[Borrow]
    must_close: bool
    is_idle: bool
    is_abandoned: bool

    def stop_query(self, *, waits: bool = False) -> bool:
        """See `Database.stop_query`."""

    def sever(self) -> Sequence[Orphan]:
        """See `DriverConnection.sever`."""


class Pool(Protocol):
    """What this module needs of a pool: its guard.

    :param lock: the pool's own, re-entrant lock.
    :param can_stop_queries: whether the driver is supported, as far as is known.
    """

    lock: threading.Condition
    stopper: Stopper
    can_stop_queries: bool

    def cancelled(self) -> Exception:
        """The error to raise for a statement of a cancelled request."""

    def stop_sharing(self, connection: HeldConnection) -> None:
        """Hand the connection out to no other request. Under the lock."""

    def count_out(self) -> None:
        """Count one more connection as handed out. Under the lock."""

    def count_in(self) -> None:
        """Count one connection less as handed out, and notify those that wait for one. Under the lock."""


class Borrow:
    """A connection that a request holds; implements `Stoppable`.

    Its lock orders the worker, which executes statements and gives the connection back, and the stopper. It guards
    whether a statement is executing, whether the borrow is over, and the attempts to stop.
    """

    def __init__(self, registry: Borrows, connection: HeldConnection, request: RunningRequest) -> None:
        self.connection = connection
        self.request = request
        self.name = request.id
        self.is_over = False
        self.withdraw_callback: Callable[[], None] = lambda: None
        # Whether a statement was refused because the request is cancelled; all later ones are refused too.
        self.has_refused = False
        # Whether the request's thread is not expected to come back. Guarded by the pool's lock.
        self.is_abandoned = False
        self._registry = registry
        self._is_executing = False
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

    def refuse(self) -> NoReturn:
        """Raise the driver's error for a stopped statement."""
        self.has_refused = True
        raise self._registry.pool.cancelled()

    def stop_query(self) -> StopResult:
        # On a connection that other requests use too, the statement may be theirs.
        if not self._registry.keep_from_others(self):
            return StopResult(was_running=False, try_again=True)
        with self._lock:
            if self.is_over:
                return StopResult(was_running=False, try_again=False)
            # Read before the attempt, as a statement that is executing may reach the server only after it. If none is
            # executing, one may still be sending its rows: the attempt stops that one, and no other begins.
            try_again = self._is_executing
            attempt = threading.Event()
            self._attempts.append(attempt)
        try:
            return StopResult(self.connection.stop_query(waits=try_again), try_again)
        finally:
            attempt.set()

    def sever(self) -> Sequence[Orphan] | None:
        if not self._registry.keep_from_others(self):
            return () if self.is_over else None
        return self.connection.sever()

    def end(self) -> None:
        """End the borrow once attempts under way have ended. Any thread that may wait."""
        with self._lock:
            self.is_over = True
        latest = time.monotonic() + ATTEMPT_TIMEOUT
        if not all(attempt.wait(latest - time.monotonic()) for attempt in self._attempts):
            # One may still come, and must not stop the next statement on a connection held across requests.
            self.connection.sever()
        self.withdraw_callback()


class Borrows:
    """All borrows of a pool's connections.

    Owns the borrows of each request and the attributes of each `HeldConnection`, all guarded by the pool's lock.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._by_request: dict[RunningRequest, list[Borrow]] = {}

    def clear(self) -> None:
        """Forget all borrows: this is a forked process, and they are its parent's."""
        self._by_request = {}

    def has_any(self, request: RunningRequest) -> bool:
        """Whether the request holds a connection. Under the pool's lock."""
        return request in self._by_request

    def overdue(self) -> int:
        """How many connections count as handed out to requests that nobody waits for any more. Any thread; no lock.

        These requests are cancelled, or were not answered by their deadline.
        """
        now = time.monotonic()
        # Each copy is atomic.
        return sum(
            not borrow.connection.is_abandoned
            for each, borrows in self._by_request.copy().items()
            if each.cancelled or (not each.is_answered and now > (each.deadline or now))
            for borrow in tuple(borrows)
        )

    def lend(self, connection: HeldConnection, request: RunningRequest) -> Borrow:
        """Record that a request holds the connection. Under the pool's lock."""
        borrow = Borrow(self, connection, request)
        connection.borrows.append(borrow)
        self._by_request.setdefault(request, []).append(borrow)
        # The application may hold a connection across requests; stopping this one must not hit the next one's query.
        request.at_end[self] = lambda: self.end(self._by_request.get(request, ()))
        if self.pool.can_stop_queries:
            borrow.withdraw_callback = request.on_cancel(lambda: self.pool.stopper.stop(borrow), wait=False)
        return borrow

    def current(self, connection: HeldConnection) -> Borrow | None:
        """The borrow for which this thread uses the connection.

        A connection that the application holds across requests is lent to each request that uses it. In a thread of the
        application's own, this is the borrow of the only request that holds the connection. None if there is no such
        request, or the connection is back in the pool.
        """
        request = current_or_none()
        if request is None:
            borrows = tuple(connection.borrows)
            return borrows[0] if len(borrows) == 1 else None
        if (borrow := borrow_of(connection, request)) is not None:
            return borrow
        with self.pool.lock:
            if connection.is_idle:
                return None
            if connection.is_abandoned:
                connection.is_abandoned = False
                self.pool.count_out()
            return self.lend(connection, request)

    def end(self, borrows: Iterable[Borrow]) -> None:
        """End borrows, after attempts to stop their queries that are under way. Any thread that may wait."""
        for borrow in list(borrows):
            borrow.end()
            with self.pool.lock:
                held = self._by_request.get(borrow.request, [])
                if borrow in held:
                    held.remove(borrow)
                    borrow.connection.borrows.remove(borrow)
                    if borrow.connection.borrows:
                        self._abandon_if_unused(borrow.connection)
                if not held:
                    self._by_request.pop(borrow.request, None)

    def abandon(self, request: RunningRequest) -> tuple[int, int]:
        """Cut the connections of a request whose thread does not come back. Any thread.

        They no longer count as handed out, so the thread that takes its place gets a connection. One that is still
        being made is closed when it is ready, if ever. Returns how many were cut now, and how many were not, because
        other requests use them too.
        """
        with self.pool.lock:
            # Under the lock, so that no connection comes back and is handed out to another request meanwhile.
            held = self._by_request.get(request, ())
            for borrow in held:
                borrow.is_abandoned = True
            abandoned = sum(self._abandon_if_unused(borrow.connection) for borrow in held)
            shared = sum(not borrow.connection.is_abandoned for borrow in held)
        return abandoned, shared

    def _abandon_if_unused(self, connection: HeldConnection) -> bool:
        """Cut a connection if none of the requests that hold it has its thread; returns whether it was cut now.

        Under the pool's lock.
        """
        if connection.is_abandoned or not all(borrow.is_abandoned for borrow in connection.borrows):
            return False
        connection.is_abandoned = connection.must_close = True
        self.pool.stop_sharing(connection)
        self.pool.stopper.kill(connection.sever())
        self.pool.count_in()
        return True

    def keep_from_others(self, borrow: Borrow) -> bool:
        """Make sure that no other request gets the connection; returns whether its query may now be stopped.

        It may not if the borrow is over, or another request that is not cancelled holds the connection too. Any thread.
        """
        connection = borrow.connection
        with self.pool.lock:
            if borrow not in connection.borrows or not all(other.request.cancelled for other in connection.borrows):
                return False
            connection.must_close = True
            self.pool.stop_sharing(connection)
            return True


def borrow_of(connection: HeldConnection, request: RunningRequest | None) -> Borrow | None:
    """The request's borrow of this connection, if it holds it. Any thread."""
    for borrow in tuple(connection.borrows):
        if borrow.request is request:
            return borrow
    return None
