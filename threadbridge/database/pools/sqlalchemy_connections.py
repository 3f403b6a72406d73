"""The connections that an SQLAlchemy engine makes, and what the pool tells of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection


class EngineConnection(TrackedConnection):
    """A connection of an engine.

    The guard's lock guards ``fairy``, what the application has of it, and ``record``, the pool's, until then.
    """

    fairy: weakref.ref[Any] | None = None
    record: Any = None


class _ThisThread(threading.local):
    # What to connect with, outside the pool.
    timeouts: Mapping[str, Any] | None = None


class EngineConnections:
    """Makes an engine's connections by its events. Worker side, or a thread that the application has started.

    :param on_record: called with the pool's record as soon as there is one.
    """

    def __init__(self, engine: Engine, guard: Guard, on_record: Callable[[Any], None]) -> None:
        self._engine = engine
        self._guard = guard
        self._on_record = on_record
        self._this_thread = _ThisThread()
        # By the id of the driver's connection, which lives at least as long as its entry.
        self._made: dict[int, EngineConnection] = {}
        self.events: list[tuple[object, str, Callable[..., Any]]] = [
            (engine, "do_connect", self._do_connect),
            (engine.pool, "connect", self._on_connect),
            (engine.pool, "checkout", self._on_checkout),
            (engine.pool, "reset", self._on_reset),
            (engine.pool, "close", self._on_close),
            (engine.pool, "close_detached", self._on_close),
        ]

    def clear(self) -> None:
        """Forget all connections, in a forked process."""
        self._made.clear()

    def find_those_of(self, other: EngineConnections) -> None:
        """From now on, `get` finds the other engine's connections, too, since this one hands them out."""
        self._made.update(other._made)
        other._made = self._made

    def get(self, connection: Any) -> EngineConnection | None:
        """What the guard keeps of a connection of the driver's; None if it has not got it."""
        return self._made.get(id(connection))

    # Outside the pool.

    def connect_apart(self, url: str, **timeouts: Any) -> Any:
        """Connect as the pool does, with its function and events."""
        self._this_thread.timeouts = timeouts
        try:
            fairy = self._engine.pool.recreate().connect()
            fairy.detach()
            return fairy.dbapi_connection
        finally:
            self._this_thread.timeouts = None

    @property
    def is_apart(self) -> bool:
        """Whether this thread is connecting outside the pool."""
        return self._this_thread.timeouts is not None

    # The events.

    def _do_connect(self, dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        timeouts = self._this_thread.timeouts
        if timeouts is not None:
            return dialect.connect(*arguments, **{**parameters, **timeouts})
        return self._make(record, lambda: dialect.connect(*arguments, **{**self._guard.defaults, **parameters}))

    def _make(self, record: Any, connect: Callable[[], Any]) -> Any:
        self._on_record(record)
        held = EngineConnection(self._guard)
        held.record = record
        made = held.make_for_current(connect)
        self._made[id(made)] = held
        return made

    def _on_connect(self, connection: Any, record: Any) -> None:
        if id(connection) not in self._made and not self.is_apart and self._is_drivers(connection):
            # Made by a function of the application's. What another pool hands out is not the driver's, and has the
            # guard of that pool.
            self._make(record, lambda: connection)

    def _is_drivers(self, connection: Any) -> bool:
        modules = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
        return self._engine.dialect.loaded_dbapi.__name__.partition(".")[0] in modules

    def _on_checkout(self, connection: Any, record: Any, fairy: Any) -> None:
        self._on_record(record)
        held = self.get(connection)
        if held is not None:
            held.is_idle = False
            held.fairy, held.record = weakref.ref(fairy), None
            self._guard.lend_to_current(held)

    def _on_reset(self, connection: Any, record: Any, state: object) -> None:
        held = self.get(connection)
        if held is not None:
            # Before the pool rolls back: that must be neither refused nor stopped.
            held.is_idle = True
            self._guard.end_borrows(held.borrows)

    def _on_close(self, connection: Any, record: Any = None) -> None:
        held = self._made.pop(id(connection), None)
        if held is not None:
            held.note_rollback()
            self._guard.end_borrows(held.borrows)
