"""Connections in no pool that requests hold: each is known by an attribute of the driver's object."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import Borrow
from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection

logger = logging.getLogger("threadbridge")


class UnpooledConnection(TrackedConnection):
    """A connection that the application has made."""

    # The driver's class gets them so.
    has_values = True

    def __init__(self, guard: Guard, connection: Any) -> None:
        super().__init__(guard)
        # The application closes it, perhaps by forgetting it.
        self.connection = weakref.ref(connection)

    @property
    def rowcount(self) -> int:
        connection: Any = self.connection()
        return int(connection.affected_rows())


class DriverConnections:
    """Lends the driver's connections to requests. Worker side, or a thread that the application has started.

    :param roll_back: the driver's own method.
    """

    def __init__(self, guard: Guard, roll_back: Callable[[Any], object]) -> None:
        self._guard = guard
        self._roll_back = roll_back

    def held(self, connection: Any) -> UnpooledConnection | None:
        """What is known of the connection; None if the guard has not got it, or no request is served."""
        held: UnpooledConnection | None = getattr(connection, "threadbridge_held", None)
        request = current_or_none()
        if held is None or request is None:
            return None
        if held.number != connection.thread_id():
            # The driver has connected again, as PyMySQL's ``ping`` does.
            self._guard.end_borrows(held.borrows)
            held.note_rollback()
            self.take(connection, request, lambda: None)
        return connection.threadbridge_held  # type: ignore[no-any-return]

    def take(self, connection: Any, request: TrackedRequest, connect: Callable[[], None]) -> None:
        """Lend a connection to the request, and connect or examine it. Raises what the driver raises."""
        connection.threadbridge_held = None
        held = UnpooledConnection(self._guard, connection)

        def made() -> Any:
            connect()
            return connection

        with self._guard.lock:
            self._guard.lend(held, request)
        try:
            held.make(made)
        except BaseException as error:
            self._guard.note_failure(error)
            self._guard.end_borrows(held.borrows)
            raise
        held.use()
        connection.threadbridge_held = held

    def release(self, connection: Any) -> None:
        """Take the connection, which is about to be closed, from the requests that hold it."""
        held: UnpooledConnection | None = getattr(connection, "threadbridge_held", None)
        if held is not None:
            held.is_idle = True
            self._guard.end_borrows(held.borrows)
            held.note_rollback()
            connection.threadbridge_held = None

    def finish(self, request: TrackedRequest, borrows: Sequence[Borrow]) -> None:
        """Take the connections from a request that has ended; roll back what it has left open if it was cancelled."""
        self._guard.end_borrows(borrows)
        for borrow in borrows:
            held = borrow.connection
            if request.cancelled and isinstance(held, UnpooledConnection) and not held.borrows:
                self._clean(held)

    def _clean(self, held: UnpooledConnection) -> None:
        connection = held.connection()
        try:
            if connection is not None and held.may_have_transaction:
                held.roll_back_by(lambda: self._roll_back(connection))
        except Exception as error:  # noqa: BLE001 - whatever the driver raises: the connection is lost, or was closed
            logger.debug("a connection of a cancelled request cannot roll back: %r", error)
