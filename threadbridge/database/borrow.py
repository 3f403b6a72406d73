"""A connection in the hands of a request: its statements begin and are stopped in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from threadbridge.crossing.current import RunningRequest
from threadbridge.database.predecessors import Left
from threadbridge.database.stopper import ATTEMPT_TIMEOUT, Told

if TYPE_CHECKING:
    from threadbridge.database.guarded_connection import GuardedConnection


class Borrow:
    """A connection in the hands of a request.

    The lock orders the worker, which begins and ends statements and hands the connection back, and the stopper.
    """

    def __init__(self, connection: GuardedConnection, request: RunningRequest) -> None:
        self.connection = connection
        self.request = request
        self.take_back: Callable[[], None] = lambda: None
        # Whether a statement was not begun, as the request is cancelled; none is, after that.
        self.has_refused = False
        # Whether the request's thread is not expected to come back.
        self.is_given_up = False
        self._executing = False
        self._over = False
        # For each order to stop, what is set when the database has answered it.
        self._attempts: list[threading.Event] = []
        self._lock = threading.Lock()

    def execute(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call the method that runs a statement, unless the request is cancelled. Worker side."""
        with self._lock:
            self._executing = True
        try:
            # Marked before this look: the stopper, which goes on while a statement is marked, comes after the mark or
            # has cancelled the request before it.
            if self.request.cancelled:
                self.refuse()
            return method(*args)
        finally:
            with self._lock:
                self._executing = False

    def refuse(self) -> NoReturn:
        """Raise the driver's error for a stopped statement: nobody waits for the request. Worker side."""
        self.has_refused = True
        raise self.connection.guard.cancelled()

    @property
    def name(self) -> str:
        """See `stopper.Stoppable`."""
        return self.request.id

    @property
    def is_over(self) -> bool:
        """See `Stoppable`."""
        return self._over

    def stop(self) -> Told:
        """See `Stoppable`; the request is cancelled. In a bounded call."""
        # On a connection that others have too it may be theirs.
        if not self.connection.guard.keep_from_others(self.connection, self):
            return Told(False, True)
        with self._lock:
            if self._over:
                return Told(False, False)
            # Looked at before: a statement that is marked may come to the server after the order. If none is, there may
            # be one whose rows are still on their way; that one does not miss it, and no other is begun.
            again = self._executing
            attempt = threading.Event()
            self._attempts.append(attempt)
        try:
            return Told(self.connection.stop(waits=again), again)
        finally:
            attempt.set()

    def sever(self) -> Sequence[Left] | None:
        """See `Stoppable`. The stopper's thread."""
        if not self.connection.guard.keep_from_others(self.connection, self):
            return () if self._over else None
        return self.connection.sever()

    def end(self) -> None:
        """The connection is the request's no more, after a stop that is under way. Any thread that may wait."""
        with self._lock:
            self._over = True
        if self._attempts and not self._are_answered(time.monotonic() + ATTEMPT_TIMEOUT):
            # An order may still come, and must not hit what the application does next on a connection it has kept.
            self.connection.sever()
        self.take_back()

    def _are_answered(self, give_up_at: float) -> bool:
        return all(attempt.wait(give_up_at - time.monotonic()) for attempt in self._attempts)
