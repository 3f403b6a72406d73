"""The methods of Django's ``DatabaseWrapper`` that a guard wraps: connecting, statements, transactions, closing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.backends.signals import connection_created

from threadbridge.crossing.current import current_or_none
from threadbridge.database.guard import Guard
from threadbridge.database.pools.django_check import WRAPPED
from threadbridge.database.pools.django_connection import DjangoConnection, track, track_pooled

if TYPE_CHECKING:
    from threadbridge.database.pools.psycopg_hand_out import HandOut


@dataclass
class Guarded:
    """An alias that has a guard: ``defaults`` are parameters for connecting, ``hand_out`` is that of psycopg's pool."""

    guard: Guard
    defaults: Mapping[str, Any]
    hand_out: HandOut | None = None


# By alias, until the guard is closed.
guards: dict[str, Guarded] = {}


class DatabaseHooks:
    """Wraps the methods `WRAPPED` of one ``DatabaseWrapper``, the connection of one thread to one alias.

    They do nothing outside requests, or while the alias has no guard. The thread that uses the connection owns the
    state.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._is_connecting = False
        # The connection in use, and the one that Django is setting up.
        self._held: DjangoConnection | None = None
        self._new: DjangoConnection | None = None
        for name in WRAPPED.split():
            setattr(wrapper, name, functools.partial(getattr(self, name), getattr(wrapper, name)))
        # The first, and so the outermost: Django's `execute_wrapper` removes the last.
        wrapper.execute_wrappers.insert(0, self.execute)

    def _guarded(self) -> Guarded | None:
        return None if current_or_none() is None else guards.get(self._wrapper.alias)

    def _current(self) -> DjangoConnection | None:
        """The connection in use; None if no request has used it, or it is still being made."""
        made, held = self._wrapper.connection, self._held
        if held is not None and held.made is made and not held.guard.closed:
            return held
        guarded = self._guarded()
        if guarded is None or made is None or self._is_connecting:
            return None
        # Made before the guard, or outside requests.
        with self._wrapper.wrap_database_errors:
            held = self._held = track(guarded.guard, self._wrapper, lambda: made)
        return held

    def _lent(self) -> DjangoConnection | None:
        """Like `_current`; from now on the guard knows that the request of this thread uses the connection."""
        held = self._current()
        # Only this thread uses it, for one request after the other.
        if held is not None and not held.borrows:
            held.guard.current_borrow(held)
        return held

    # Connecting.

    def get_connection_params(self, get: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        guarded = guards.get(self._wrapper.alias)
        return get() if guarded is None else {**guarded.defaults, **get()}

    def connect(self, connect: Callable[[], None]) -> None:
        guarded = self._guarded()
        if guarded is None:
            connect()
            return
        guarded.guard.ask()
        # Django's own first statements are part of connecting.
        self._is_connecting = True
        self._held = self._new = None
        try:
            connect()
            if self._new is not None:
                self._new.end_transaction()
        except BaseException:
            if self._new is not None:
                # Django keeps it, although it is not set up.
                self._new.must_close = True
            raise
        finally:
            self._held = self._new
            self._is_connecting = False

    def get_new_connection(self, make: Callable[[dict[str, Any]], Any], parameters: dict[str, Any]) -> Any:
        guarded = guards.get(self._wrapper.alias)
        if guarded is not None and guarded.hand_out is not None:
            guarded.hand_out.follow(self._wrapper.pool)
            made = make(parameters)
            if current_or_none() is not None:
                self._new = track_pooled(guarded.guard, self._wrapper, made)
            return made
        if guarded is None or current_or_none() is None:
            return make(parameters)
        self._new = track(guarded.guard, self._wrapper, lambda: make(parameters))
        return self._new.made

    def is_usable(self, is_usable: Callable[[], bool]) -> bool:
        # The database may not answer.
        self._lent()
        return is_usable()

    def close(self, close: Callable[[], None]) -> None:
        held, self._held = self._held, None
        if held is not None and held.made is self._wrapper.connection:
            # Before the pool rolls back: that must be neither refused nor stopped.
            held.note_rollback()
            held.guard.end_borrows(held.borrows)
        close()

    # Statements.

    def make_cursor(self, make: Callable[[Any], Any], cursor: Any) -> Any:
        made = make(cursor)
        # It may execute statements that Django does not see, such as psycopg's COPY.
        if self._lent() is not None:
            # Django's wrappers of statements do not see it. The method must not refer to the cursor that has it:
            # cursors are freed as soon as they are forgotten.
            made.callproc = functools.partial(self._callproc, make, cursor)
        return made

    make_debug_cursor = make_cursor

    def _callproc(self, make: Callable[[Any], Any], cursor: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        held = self._current()
        call = functools.partial(make(cursor).callproc, name, *args, **kwargs)
        return call() if held is None else held.execute(f"CALL {name}", cursor, call)

    def execute(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        held = self._current()
        if held is None:
            return execute(sql, params, many, context)
        # It may be an object of psycopg's.
        text = sql if isinstance(sql, str) else str(sql)
        # For MySQL, Django has another wrapper around the driver's cursor.
        cursor = context["cursor"].cursor
        cursor = getattr(cursor, "cursor", cursor)
        return held.execute(text, cursor, execute, sql, params, many, context, is_many=many)

    # Transactions.

    def commit(self, commit: Callable[[], None]) -> None:
        # In an atomic block, Django raises an error and commits nothing.
        held = None if self._wrapper.in_atomic_block else self._current()
        if held is None:
            commit()
        else:
            held.commit_by(commit)

    def rollback(self, rollback: Callable[[], None]) -> None:
        held = None if self._wrapper.in_atomic_block else self._current()
        if held is None:
            rollback()
        else:
            held.roll_back_by(rollback)

    def set_autocommit(self, set_it: Callable[..., None], autocommit: bool, *args: Any, **kwargs: Any) -> None:
        held = None if self._wrapper.in_atomic_block else self._lent()
        if held is not None and autocommit and held.has_changes:
            # MySQL commits then.
            held.commit_by(lambda: set_it(autocommit, *args, **kwargs))
            return
        try:
            set_it(autocommit, *args, **kwargs)
        except BaseException as error:
            # Most transactions begin with this, so it is here that a kept connection turns out to be lost.
            if held is not None:
                held.guard.note_failure(error)
            raise


def hook_connections() -> None:
    """Hook the connections of this thread, and those that any thread makes later."""
    if "create_connection" not in vars(connections):
        connections.create_connection = functools.partial(_create, connections.create_connection)
        # Those that other threads have already.
        connection_created.connect(_on_created)
    for wrapper in connections.all(initialized_only=True):
        _hook(wrapper)


def _create(create: Callable[[str], Any], alias: str) -> Any:
    wrapper = create(alias)
    _hook(wrapper)
    return wrapper


def _on_created(connection: Any, **kwargs: object) -> None:
    _hook(connection)


def _hook(wrapper: Any) -> None:
    hooks = (getattr(each, "__self__", None) for each in wrapper.execute_wrappers)
    if wrapper.alias in guards and not any(isinstance(each, DatabaseHooks) for each in hooks):
        DatabaseHooks(wrapper)
