"""What is sent on the connections of an SQLAlchemy engine: statements by events, the rest by the dialect's methods."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from threadbridge.database.guard import Guard
from threadbridge.database.pools.sqlalchemy_connections import EngineConnection, EngineConnections

# The methods of a dialect that are wrapped.
_WRAPPED = ("do_commit", "do_rollback", "do_ping")


class EngineStatements:
    """Makes an engine execute statements by `EngineConnection`. Worker side, or a thread of the application's."""

    def __init__(self, engine: Engine, guard: Guard, connections: EngineConnections) -> None:
        self._dialect: Any = engine.dialect
        self._guard = guard
        self._connections = connections
        self.events: list[tuple[object, str, Callable[..., Any]]] = [
            (engine, "do_execute", self._do_execute),
            (engine, "do_execute_no_params", self._do_execute_no_params),
            (engine, "do_executemany", self._do_executemany),
        ]

    def wrap_dialect(self) -> None:
        for name in _WRAPPED:
            setattr(self._dialect, name, _wrapped(getattr(self._dialect, name), getattr(self, f"_{name}")))

    def unwrap_dialect(self) -> None:
        for name in _WRAPPED:
            with contextlib.suppress(AttributeError):
                delattr(self._dialect, name)

    # Statements. Each listener returns whether it has executed the statement.

    def _held(self, context: Any) -> EngineConnection | None:
        return self._connections.get(context.root_connection.connection.dbapi_connection)

    def _do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        held = self._held(context)
        if held is None:
            return False
        held.execute(statement, cursor, self._dialect.do_execute, cursor, statement, parameters, context)
        return True

    def _do_execute_no_params(self, cursor: Any, statement: str, context: Any) -> bool:
        held = self._held(context)
        if held is None:
            return False
        held.execute(statement, cursor, self._dialect.do_execute_no_params, cursor, statement, context)
        return True

    def _do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        held = self._held(context)
        if held is None:
            return False
        call = self._dialect.do_executemany
        held.execute(statement, cursor, call, cursor, statement, parameters, context, is_many=True)
        return True

    # The dialect's methods that are no statements. Each gets the method itself, and the pool's or driver's connection.

    def _of(self, connection: Any) -> EngineConnection | None:
        return self._connections.get(getattr(connection, "dbapi_connection", connection))

    def _do_commit(self, method: Callable[..., Any], connection: Any) -> None:
        held = self._of(connection)
        if held is None:
            method(connection)
        else:
            try:
                held.commit_by(lambda: method(connection))
            except BaseException:
                # The pool does not roll back then.
                held.must_close = True
                raise

    def _do_rollback(self, method: Callable[..., Any], connection: Any) -> None:
        held = self._of(connection)
        if held is None:
            method(connection)
        elif held.must_close and held.is_idle:
            # It is closed next, and the database rolls back then.
            held.note_rollback()
        elif held.is_idle and not held.may_have_transaction:
            # The pool rolls back each connection that comes back, also after a commit or rollback of the application's.
            pass
        elif self._guard.must_not_wait():
            held.must_close = True
            held.note_rollback()
        else:
            held.roll_back_by(lambda: method(connection))

    def _do_ping(self, method: Callable[..., Any], connection: Any) -> Any:
        held = self._of(connection)
        if held is not None:
            # The database may not answer.
            self._guard.lend_to_current(held)
        return method(connection)


def _wrapped(method: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    return lambda connection: wrapper(method, connection)
