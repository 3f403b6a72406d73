"""PostgreSQL: the only module that knows it."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from threadbridge.database import Session, StopFailed
from threadbridge.sql_effects import may_change_session, only_reads

# Seconds to wait for the server's answer to a cancel request.
CONTROL_TIMEOUT = 3

QUERY_CANCELED = "57014"
TOO_MANY_CONNECTIONS = "53300"


class PostgreSQLSession:
    """What has been sent by cursors on a connection. See `threadbridge.database.Session`. Worker side."""

    def __init__(self, connection: Any) -> None:
        # No cycle: a connection that is forgotten is closed at once.
        self._connection = weakref.ref(connection)
        self._made_with_autocommit = self.autocommits = bool(connection.autocommit)
        self.only_reads = True
        self._is_changed = False

    def sending(self, sql: str) -> None:
        """See `Session`."""
        text = sql.encode(errors="replace")
        if not only_reads(text) or b"set_config" in text:
            self.only_reads = False
            self.autocommits = self._autocommits_now()
            self._is_changed = self._is_changed or b"set_config" in text or may_change_session(text)

    def ended_transaction(self) -> None:
        """See `Session`."""
        self.only_reads = True

    @property
    def is_changed(self) -> bool:
        """See `Session`."""
        return self._is_changed or self._autocommits_now() != self._made_with_autocommit

    def _autocommits_now(self) -> bool:
        return bool(self._connection().autocommit)  # type: ignore[union-attr]

    def begin_rollback(self) -> bool:
        """See `Session`; the drivers can send nothing without waiting for the answer."""
        return False

    def end_rollback(self) -> None:
        """See `Session`."""
        raise AssertionError("no rollback was begun")


class PostgreSQL:
    """Stops queries by the driver's own ``cancel``, which asks the server by a connection of its own."""

    defaults: Mapping[str, Any] = {}
    timeouts: Mapping[str, Any] = {"connect_timeout": CONTROL_TIMEOUT}

    def __init__(self, driver: str) -> None:
        module = importlib.import_module(driver)
        self._error: type[Exception] = module.Error
        self._operational: type[Exception] = module.OperationalError
        self._canceled: type[Exception] = importlib.import_module(f"{driver}.errors").QueryCanceled

    def identify(self, connection: Any) -> int:
        """See `threadbridge.database.Database`; the server's process for the connection."""
        number: int = connection.info.backend_pid
        return number

    def number(self, identity: int) -> int:
        """See `Database`."""
        return identity

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """See `Database`; statements that are objects of the driver's are left as they are."""
        if comment is not None:
            _tag(connection, comment)
        return PostgreSQLSession(connection)

    def stop(self, connection: Any, identity: int) -> None:
        """See `Database`."""
        if connection.closed:
            return
        try:
            # psycopg 3.2 has a cancel with a timeout; older ones and psycopg2 wait as long as the network does.
            cancel = getattr(connection, "cancel_safe", None)
            if cancel is not None:
                cancel(timeout=CONTROL_TIMEOUT)
            else:
                connection.cancel()
        except self._error as error:
            raise StopFailed(str(error)) from error

    def is_statement_error(self, error: BaseException) -> bool:
        """See `Database`."""
        return _sqlstate(error) == QUERY_CANCELED

    def is_outage(self, error: BaseException) -> bool:
        """See `Database`."""
        # Class 08: connection exception; 57P0x: the server is shutting down or starting up; none: no answer at all.
        state = _sqlstate(error)
        return isinstance(error, self._operational) and (
            state is None or state[:2] == "08" or state[:4] == "57P0" or state == TOO_MANY_CONNECTIONS
        )

    def cancelled(self) -> Exception:
        """See `Database`."""
        return self._canceled("canceling statement: nobody waits for this request any more")


def _tag(connection: Any, comment: Callable[[], str]) -> None:
    # psycopg2's connections begin without one.
    kind: Any = connection.cursor_factory or importlib.import_module("psycopg2.extensions").cursor

    class TaggingCursor(kind):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().execute(_tagged(query, comment), *args, **kwargs)

        def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().executemany(_tagged(query, comment), *args, **kwargs)

    connection.cursor_factory = TaggingCursor


def _tagged(query: Any, comment: Callable[[], str]) -> Any:
    if isinstance(query, str):
        return comment() + query
    return comment().encode() + query if isinstance(query, bytes) else query


def _sqlstate(error: BaseException) -> str | None:
    state: str | None = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state
