"""A connection of one of Django's databases, with what the guard keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection


class DjangoConnection(TrackedConnection):
    """A connection of a database of Django's: ``made`` is the driver's object, ``wrapper`` Django's around it."""

    def __init__(self, guard: Guard, wrapper: Any) -> None:
        super().__init__(guard)
        self.wrapper = wrapper
        self.made: Any = None

    @property
    def has_changes(self) -> bool:
        """Whether a transaction is open in which a request has, or may have, changed data."""
        return bool(self._changes.open)

    def close_if_stopped(self) -> None:
        """At the end of the request: if a statement was stopped, close the connection instead of keeping it."""
        if self.must_close and self.made is self.wrapper.connection:
            self.wrapper.close()


def track(guard: Guard, wrapper: Any, connect: Callable[[], Any]) -> DjangoConnection:
    """Make a connection, while the request of this thread holds it already. Raises what the driver raises."""
    held = DjangoConnection(guard, wrapper)
    held.made = held.make_for_current(connect)
    return held


def track_pooled(guard: Guard, wrapper: Any, made: Any) -> DjangoConnection:
    """Lend a connection of psycopg's pool to the request of this thread. Raises what the driver raises."""
    # Not above: few need it.
    from threadbridge.database.pools.psycopg_hand_out import HELD

    held: DjangoConnection | None = getattr(made, HELD, None)
    if held is None or held.guard is not guard:
        try:
            held = track(guard, wrapper, lambda: made)
        except BaseException:
            wrapper.pool.putconn(made)
            raise
        setattr(made, HELD, held)
    held.wrapper, held.is_idle = wrapper, False
    guard.lend_to_current(held)
    return held
