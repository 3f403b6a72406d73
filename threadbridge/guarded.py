"""Connections as the pool guard makes them: they know for which requests they are in use, and how to stop for them."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.current import RunningRequest, current_or_none
from threadbridge.database import Database
from threadbridge.driver_connection import DriverConnection
from threadbridge.statements import KEPT_TEXT

logger = logging.getLogger("threadbridge")

# Seconds for which a connection that was in order, and whose socket the server has not closed, counts as alive.
FRESH = 1.0
# All that may stand in the comment that names a request: nothing ends it, nothing is a parameter's place.
_NOT_IN_TAG = re.compile(r"[^A-Za-z0-9._:-]")


class Guard(Protocol):
    """What a connection needs of the pool guard that has made it."""

    tags_queries: bool
    last_success: float

    def note_failure(self, error: BaseException) -> None: ...

    def database_of(self, connection: object) -> Database | None: ...

    def cancelled(self) -> Exception: ...

    def defer(self, task: Callable[[], None]) -> bool: ...

    def keep_from_others(self, connection: GuardedConnection, borrow: Borrow) -> bool: ...

    def end(self, borrows: Iterable[Borrow]) -> None: ...


class Borrow:
    """A connection in the hands of a request.

    The lock orders the worker, which begins and ends statements and hands the connection back, and the stopper.
    """

    def __init__(self, connection: GuardedConnection, request: RunningRequest) -> None:
        self.connection = connection
        self.request = request
        self.take_back: Callable[[], None] = lambda: None
        self._executing = False
        self._over = False
        self._lock = threading.Lock()

    def execute(self, method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a statement, unless the request is cancelled. Worker side."""
        with self._lock:
            self._executing = True
        try:
            # Marked before this look: the stopper, which goes on while a statement is marked, comes after the mark or
            # has cancelled the request before it.
            self.refuse_if_cancelled()
            return method(*args, **kwargs)
        finally:
            with self._lock:
                self._executing = False

    def refuse_if_cancelled(self) -> None:
        """Raise the driver's error for a stopped statement when nobody waits for the request. Worker side."""
        if self.request.cancelled:
            raise self.connection.guard.cancelled()

    def stop(self) -> bool | None:
        """See `threadbridge.stopper.Stoppable`; the request is cancelled. The stopper's thread."""
        # On a connection that others have too it may be theirs.
        if not self.connection.guard.keep_from_others(self.connection, self):
            return None if self._over else True
        with self._lock:
            if self._over:
                return None
            self.connection.stop()
            # A statement that is marked may not have come to the server yet. If none is, there may be one whose rows
            # are still on their way; that one did not miss the stop, and no other is begun.
            return self._executing

    def sever(self) -> None:
        """See `Stoppable`. The stopper's thread."""
        with self._lock:
            if not self._over:
                self.connection.sever()

    def end(self) -> None:
        """The connection is the request's no more, after a stop that is under way. Any thread that may wait."""
        with self._lock:
            self._over = True
        self.take_back()


class GuardedCursor(SteadyDBCursor):  # type: ignore[misc]
    """A cursor that begins no statement for a cancelled request."""

    _closed: bool

    def __init__(self, connection: GuardedConnection, *args: Any, **kwargs: Any) -> None:
        self._lease = connection.lease
        super().__init__(connection, *args, **kwargs)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """See `SteadyDBCursor`."""
        return self._run("execute", args, kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        """See `SteadyDBCursor`."""
        return self._run("executemany", args, kwargs)

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        """See `SteadyDBCursor`."""
        return self._run("callproc", args, kwargs)

    def _run(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # The application may have let the connection go, as pool.connection().cursor() does at once.
        self._con.settle()
        method = self._get_tough_method(name)
        borrow = self._con.borrow_of(current_or_none())
        if borrow is None:
            return method(*args, **kwargs)
        statements = borrow.request.statements
        statement = statements.begin(_text(name, args, kwargs), self._con.number)
        try:
            result = borrow.execute(method, args, kwargs)
        except BaseException as error:
            statements.end(statement, error=type(error).__name__)
            self._con.guard.note_failure(error)
            raise
        statements.end(statement, rows=_rows(self._cursor))
        self._con.guard.last_success = statement.ended
        return result

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        # A driver may have more of them than the DB-API.
        if name.startswith(("execute", "call")):
            return lambda *args, **kwargs: self._run(name, args, kwargs)
        return attribute

    def close(self) -> None:
        """See `SteadyDBCursor`. The driver may first fetch all the rows that are left."""
        if self._closed:
            return
        if self._lease != self._con.lease:
            # The connection is back in the pool, and may be in use by another thread.
            self._closed = True
        elif not self._con.guard.defer(super().close):
            super().close()


class GuardedConnection(SteadyDBConnection):  # type: ignore[misc]
    """A connection that knows for which requests it is in use: one, or several if the pool shares connections."""

    _transaction: bool

    def __init__(self, guard: Guard, *args: Any, **kwargs: Any) -> None:
        self.guard = guard
        self.borrows: list[Borrow] = []
        # One on which a statement was stopped is closed when it comes back, and never handed out again: no stop can
        # come late and hit somebody else's statement.
        self.spoilt = False
        # Which time this is that it is handed out.
        self.lease = 0
        # The driver's connection in use, and the last that was made: another one while DBUtils replaces a broken one.
        self._driver: DriverConnection | None = None
        self._made: DriverConnection | None = None
        # Whether the answer to a rollback is still to be read; when, by the monotonic clock, it last came back.
        self._is_rolling_back = False
        self._came_back_at = 0.0
        super().__init__(*args, **kwargs)

    def _create(self) -> Any:
        request = current_or_none()
        if request is not None and request.cancelled:
            # DBUtils would run the stopped statement again on it.
            raise self.guard.cancelled()
        made = super()._create()
        database = self.guard.database_of(made)
        if database is not None:
            try:
                self._made = DriverConnection(made, database, _tag if self.guard.tags_queries else None)
            except BaseException:
                made.close()
                raise
        return made

    def cursor(self, *args: Any, **kwargs: Any) -> GuardedCursor:
        """See `SteadyDBConnection`."""
        return GuardedCursor(self, *args, **kwargs)

    def commit(self) -> None:
        """See `SteadyDBConnection`; what a cancelled request has done is not committed."""
        borrow = self.borrow_of(current_or_none())
        if borrow is not None:
            borrow.refuse_if_cancelled()
        super().commit()

    def clean(self, force: bool) -> None:
        """End what was begun on it, or mark it spoilt. Any thread that may wait."""
        self.lease += 1
        self._came_back_at = time.monotonic()
        if self.spoilt or not (force or self._transaction):
            return
        try:
            # Not by DBUtils, which would replace a broken connection that perhaps nobody needs.
            self._is_rolling_back = self._driver is not None and self._driver.begin_rollback()
            if not self._is_rolling_back:
                self._con.rollback()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is closed for it
            # It may be broken, or have rows that nobody has fetched.
            logger.debug("a connection is let go: %r", error)
            self.spoilt = True
        self._transaction = False

    def _ping_check(self, ping: int = 1, reconnect: bool = True) -> Any:
        """See `SteadyDBConnection`; with 1 it is handed out. One that came back just now is not asked again."""
        if ping == 1:
            self.settle()
            if self._pinger is None and time.monotonic() - self._came_back_at < FRESH and self._is_quiet():
                return True
        return super()._ping_check(ping, reconnect)

    def settle(self) -> None:
        """Wait for the end of a rollback under way. Worker side. Raises the driver's error when it cannot connect."""
        if not self._is_rolling_back:
            return
        self._is_rolling_back = False
        try:
            self._driver.end_rollback()  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is replaced for it
            logger.debug("a connection is replaced: %r", error)
            made = self._create()
            self._close()
            self._store(made)

    def _is_quiet(self) -> bool:
        return self._driver is not None and self._driver.is_quiet()

    def borrow_of(self, request: RunningRequest | None) -> Borrow | None:
        """The request's hold on this connection, if it has one. Worker side."""
        if request is not None:
            for borrow in self.borrows:
                if borrow.request is request:
                    return borrow
        return None

    def _store(self, con: Any) -> None:
        """See `SteadyDBConnection`: the driver's connection is in use from now on."""
        super()._store(con)
        self._driver = self._made

    @property
    def number(self) -> int | None:
        """Its number in the database's process list, if that is known. Any thread."""
        return None if self._driver is None else self._driver.number

    def _drivers(self) -> set[DriverConnection]:
        return {driver for driver in (self._driver, self._made) if driver is not None}

    def stop(self) -> None:
        """Stop the statement that runs on it. The stopper's thread. Raises `StopFailed`."""
        for driver in self._drivers():
            driver.stop()

    def sever(self) -> None:
        """Have whoever waits for the database on it fail at once. The stopper's thread."""
        for driver in self._drivers():
            driver.sever()


def _text(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a cursor's method is to execute."""
    sql = args[0] if args else next(iter(kwargs.values()), "")
    if isinstance(sql, (bytes, bytearray)):
        sql = sql[:KEPT_TEXT].decode(errors="replace")
    # A driver may have objects of its own for statements.
    return f"CALL {sql}" if name == "callproc" else str(sql)


def _rows(cursor: Any) -> int:
    rows = getattr(cursor, "rowcount", -1)
    # Drivers say "unknown" in different ways: None, -1 or that as an unsigned number.
    return rows if isinstance(rows, int) and 0 <= rows < 2**63 else -1


def _tag() -> str:
    """The comment that names the request that this thread serves, with a space behind; "" when it serves none."""
    request = current_or_none()
    return "" if request is None else f"/* {_NOT_IN_TAG.sub('', request.id)} */ "
