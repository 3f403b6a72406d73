"""Connections as the pool guard makes them: they know for which requests they are in use, and how to stop for them."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.current import RunningRequest, current_or_none
from threadbridge.database import Database
from threadbridge.driver_connection import DriverConnection
from threadbridge.predecessors import ConnectionList, Left
from threadbridge.sql_effects import only_reads
from threadbridge.statements import KEPT_TEXT, Statements
from threadbridge.stopper import ATTEMPT_TIMEOUT, Told
from threadbridge.transaction import Effect, Transaction

logger = logging.getLogger("threadbridge")

# Seconds for which a connection that was in order, and whose socket the server has not closed, counts as alive.
FRESH = 1.0
# All that may stand in the comment that names a request: nothing ends it, nothing is a parameter's place.
_NOT_IN_TAG = re.compile(r"[^A-Za-z0-9._:-]")


class Guard(Protocol):
    """What a connection needs of the pool guard that has made it."""

    tags_queries: bool
    resets_sessions: bool
    last_success: float
    connections: ConnectionList

    def note_failure(self, error: BaseException) -> None: ...

    def may_repeat(self, error: Exception, sql: str) -> bool: ...

    def is_outage(self, error: BaseException) -> bool: ...

    def is_lost(self, error: BaseException) -> bool: ...

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
        # Whether a statement was not begun, as the request is cancelled; none is, after that.
        self.has_refused = False
        self._executing = False
        self._over = False
        # Set when the database has answered the last order to stop.
        self._attempt: threading.Event | None = None
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
        """See `threadbridge.stopper.Stoppable`."""
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
            attempt = self._attempt = threading.Event()
        try:
            return Told(self.connection.stop(), again)
        finally:
            attempt.set()

    def sever(self) -> Sequence[Left] | None:
        """See `Stoppable`. The stopper's thread."""
        if not self.connection.guard.keep_from_others(self.connection, self):
            return () if self._over else None
        return self.connection.sever()

    def abandon(self) -> bool:
        """The request's thread does not come back; whether the connection goes with it. Under the pool's lock."""
        if self.connection.is_abandoned or len(self.connection.borrows) > 1:
            return False
        self.connection.is_abandoned = self.connection.spoilt = True
        return True

    def end(self) -> None:
        """The connection is the request's no more, after a stop that is under way. Any thread that may wait."""
        with self._lock:
            self._over = True
            attempt = self._attempt
        if attempt is not None and not attempt.wait(ATTEMPT_TIMEOUT):
            # The order may still come, and must not hit what the application does next on a connection it has kept.
            self.connection.sever()
        self.take_back()


class GuardedCursor(SteadyDBCursor):  # type: ignore[misc]
    """A cursor that begins no statement for a cancelled request."""

    _closed: bool
    _cursor: Any

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
        connection: GuardedConnection = self._con
        # The application may have let the connection go, as pool.connection().cursor() does at once.
        connection.settle()
        sql = _text(name, args, kwargs, self._cursor)
        borrow = connection.borrow_of(current_or_none())
        if borrow is None:
            return self._execute(name, sql, args, kwargs)
        statements = borrow.request.statements
        statement = statements.begin(sql, connection.number)
        try:
            result = borrow.execute(self._execute, name, sql, args, kwargs)
        except BaseException as error:
            statements.end(statement, error=type(error).__name__)
            if not borrow.has_refused:
                connection.note_failure(statements, sql, error, is_many=name == "executemany")
            raise
        statements.end(statement, rows=_rows(self._cursor))
        connection.guard.last_success = statement.ended
        if not connection.only_reads:
            connection.note_success(statements, sql)
        return result

    def _execute(self, name: str, sql: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a statement, and once more on a new connection only where nothing can be lost or doubled by that.

        DBUtils does so whenever it fails, behind a transaction that is gone.
        """
        connection: GuardedConnection = self._con
        is_first = connection.begin_statement(sql, self._cursor)
        try:
            result = self._call(name, args, kwargs)
        except connection.failures as error:
            if self._no_failover or not (
                is_first and connection.may_replace and connection.guard.may_repeat(error, sql)
            ):
                raise
            connection.replace()
            self._renew()
            connection.sending(sql, self._cursor)
            result = self._call(name, args, kwargs)
        return result

    def _call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        sets_sizes = name.startswith("execute") and (self._inputsizes or self._outputsizes)
        if sets_sizes:
            self._setsizes()
        result = getattr(self._cursor, name)(*args, **kwargs)
        if sets_sizes:
            self._clearsizes()
        return result

    def _renew(self) -> None:
        """Take a cursor of the connection that has replaced the lost one."""
        lost, self._cursor = self._cursor, self._con.new_cursor(*self._args, **self._kwargs)
        with contextlib.suppress(Exception):
            lost.close()

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        # A driver may have more of them than the DB-API.
        if name.startswith(("execute", "call")):
            return lambda *args, **kwargs: self._run(name, args, kwargs)
        if name.startswith(("copy", "stream")):
            # It is not seen how that ends.
            self._con.begin_unseen()
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
        # Whether nothing was sent since it was handed out, or since the last commit or rollback.
        self._is_untouched = True
        self._changes = Transaction()
        # Whether the pool counts it no more, see `PoolGuard.abandon`.
        self.is_abandoned = False
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
                self._made = DriverConnection(
                    made, database, self.guard.connections, _tag if self.guard.tags_queries else None
                )
            except BaseException:
                made.close()
                raise
        return made

    def cursor(self, *args: Any, **kwargs: Any) -> GuardedCursor:
        """See `SteadyDBConnection`."""
        return GuardedCursor(self, *args, **kwargs)

    # Transactions.

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """See `SteadyDBConnection`."""
        self._is_untouched = False
        is_sent = hasattr(self._con, "begin")
        try:
            super().begin(*args, **kwargs)
        except BaseException as error:
            self.note_failure(None, "BEGIN", error)
            raise
        if is_sent:
            self._note("BEGIN")

    def commit(self) -> None:
        """See `SteadyDBConnection`; what a cancelled request has done is not committed.

        A connection that was lost is not replaced: what is done next must not pass for the rest of its transaction.
        """
        borrow = self.borrow_of(current_or_none())
        if borrow is not None and borrow.request.cancelled:
            borrow.refuse()
        has_changes = self._changes.has_changes
        if has_changes:
            self.announce("COMMIT")
            self._changes.committing()
        try:
            self._con.commit()
        except BaseException as error:
            self.note_failure(None, "COMMIT", error)
            raise
        if has_changes:
            self._note("COMMIT")
        self._transaction = False
        self._end_transaction()

    def rollback(self) -> None:
        """See `SteadyDBConnection`."""
        before = self._con
        try:
            super().rollback()
        except BaseException as error:
            self.guard.note_failure(error)
            if self._con is not before or (self._driver is not None and self.guard.is_lost(error)):
                # The database rolls back when it finds the connection broken.
                self._note_rollback()
                self._end_transaction()
            raise
        self._note_rollback()
        self._end_transaction()

    def _end_transaction(self) -> None:
        self._is_untouched = True
        if self._driver is not None:
            self._driver.session.ended_transaction()

    def begin_statement(self, sql: str, cursor: object) -> bool:
        """A cursor of the driver's is about to send a statement; whether it is the first, see `may_replace`.

        Worker side.
        """
        is_first, self._is_untouched = self._is_untouched, False
        if is_first and self._ping & 4 and self.may_replace:
            self._ping_check(4)
        self.sending(sql, cursor)
        return is_first

    def begin_unseen(self) -> None:
        """Something is about to be sent that may change data, by a method that is not guarded. Worker side."""
        self._is_untouched = False
        self.announce("COPY")
        borrow = self.borrow_of(current_or_none())
        if borrow is not None:
            self._changes.note(Effect.UNKNOWN, borrow.request.statements)

    def sending(self, sql: str, cursor: object) -> None:
        """A cursor of the driver's is about to send a statement, which counts for ``maxusage``. Worker side."""
        self._usage += 1
        self.announce(sql, cursor)

    def announce(self, sql: str, cursor: object = None) -> None:
        """A statement is about to be sent. Worker side."""
        if self._driver is not None:
            self._driver.session.sending(sql, cursor)

    @property
    def may_replace(self) -> bool:
        """Whether another connection would do as well, if nothing was sent on this one yet. Worker side."""
        # The application may have sent something by itself, on the driver's connection.
        has_changed = self._driver is not None and not self._driver.session.only_reads
        return not (has_changed or self._transaction or self._has_changed_session() or len(self.borrows) > 1)

    def _has_changed_session(self) -> bool:
        try:
            return self._driver is not None and self._driver.session.is_changed
        except self._failures:
            # It is closed, and does not tell any more.
            return True

    @property
    def only_reads(self) -> bool:
        """Whether certainly nothing but plain queries was sent since the last commit or rollback. Worker side."""
        return self._driver is not None and self._driver.session.only_reads

    # What becomes of changes to the data.

    def note_success(self, statements: Statements, sql: str) -> None:
        """A statement that may have changed data has succeeded. Worker side."""
        self._note(sql, statements)

    def _note(self, sql: str, statements: Statements | None = None) -> None:
        if self._driver is not None:
            self._changes.note(self._driver.session.effect(sql), statements)
        elif not only_reads(sql.encode(errors="replace")):
            # Of databases that are not known nothing is.
            self._changes.note(Effect.UNKNOWN, statements)

    def note_failure(
        self, statements: Statements | None, sql: str, error: BaseException, *, is_many: bool = False
    ) -> None:
        """A statement has failed, and with the connection, perhaps, its transaction. Worker side."""
        self.guard.note_failure(error)
        is_lost = self.guard.is_lost(error)
        if self.guard.is_outage(error) and not is_lost:
            # What was begun is as it was, until the connection is closed: another may lead to a server that can work.
            self.spoilt = True
        if self._driver is not None:
            # One that is closed does not tell any more, and has sent nothing.
            effect = Effect.ROLLED_BACK
            with contextlib.suppress(Exception):
                effect = self._driver.session.effect_of_failure(sql, error, is_lost=is_lost, is_many=is_many)
            self._changes.note(effect, statements)
        elif not only_reads(sql.encode(errors="replace")):
            self._changes.note(Effect.UNKNOWN, statements)

    def _note_rollback(self) -> None:
        """What is open is rolled back, by a statement or with the connection. Any thread."""
        if not self._changes.has_changes:
            return
        effect = Effect.ROLLED_BACK
        if self._driver is not None:
            # One that is closed does not tell any more.
            with contextlib.suppress(Exception):
                effect = self._driver.session.effect("ROLLBACK")
        self._changes.note(effect, None)

    def replace(self) -> None:
        """Go on with a new connection. Worker side. Raises what the driver raises when there is none to be had."""
        made = self._create()
        self._close()
        self._store(made)

    @property
    def failures(self) -> Any:
        """The exceptions that may mean that the connection is broken. Any thread."""
        return self._failures

    def _cursor(self, *args: Any, **kwargs: Any) -> Any:
        """See `SteadyDBConnection`, which would replace the connection in the middle of a transaction."""
        if self._ping & 2 and self._is_untouched and self.may_replace:
            self._ping_check(2)
        try:
            return self._con.cursor(*args, **kwargs)
        except self._failures:
            if not (self._is_untouched and self.may_replace):
                raise
            self.replace()
            return self._con.cursor(*args, **kwargs)

    def new_cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A cursor of the driver's own. Worker side."""
        return self._con.cursor(*args, **kwargs)

    # Hand-back and hand-out.

    def clean(self, force: bool) -> None:
        """End what was begun on it, or mark it spoilt. Any thread that may wait."""
        self.lease += 1
        self._came_back_at = time.monotonic()
        if self.spoilt:
            # It is about to be closed: the database rolls back what is open.
            self._note_rollback()
            return
        try:
            if (self._maxusage and self._usage >= self._maxusage) or (
                self.guard.resets_sessions and self._has_changed_session()
            ):
                # The next request gets a new one: nothing that this one has left can reach it.
                self.spoilt = True
                if not self.only_reads:
                    # Closing it would let go of its locks only later.
                    self._con.rollback()
            elif force or self._may_be_open():
                # Not by DBUtils, which would replace a broken connection that perhaps nobody needs.
                self._is_rolling_back = self._driver is not None and self._driver.session.begin_rollback()
                if not self._is_rolling_back:
                    self._con.rollback()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is closed for it
            # It may be broken, or have rows that nobody has fetched.
            logger.debug("a connection is let go: %r", error)
            self.spoilt = True
        self._note_rollback()
        self._transaction = False
        self._is_untouched = True
        if not self._is_rolling_back:
            self._end_transaction()

    def _may_be_open(self) -> bool:
        """Whether what was begun, perhaps, is not ended. A transaction goes to no other request, even unread rows."""
        if self._is_untouched and (self._driver is None or self._driver.session.only_reads):
            return self._transaction
        return self._transaction or self._driver is None or self._driver.session.may_be_open

    def _ping_check(self, ping: int = 1, reconnect: bool = True) -> Any:
        """See `SteadyDBConnection`; with 1 it is handed out. One that came back just now is not asked again."""
        if ping == 1:
            self.settle()
            if self._pinger is None and time.monotonic() - self._came_back_at < FRESH and self._is_quiet():
                return True
            if not self._ping & 1 and self._driver is not None and not self._is_quiet():
                # The pool must not ask the database, but this one is closed, and to see that needs no answer.
                self.replace()
        return super()._ping_check(ping, reconnect)

    def settle(self) -> None:
        """Wait for the end of a rollback under way. Worker side. Raises the driver's error when it cannot connect."""
        if not self._is_rolling_back:
            return
        self._is_rolling_back = False
        try:
            self._driver.session.end_rollback()  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is replaced for it
            logger.debug("a connection is replaced: %r", error)
            self.replace()

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

    def stop(self) -> bool:
        """Stop the statement that runs on it; whether there is one. Raises `StopFailed`."""
        # All of them: one may be gone already.
        found = [driver.stop() for driver in self._drivers()]
        return any(found)

    def sever(self) -> Sequence[Left]:
        """Have whoever waits for the database on it fail at once; what is left of it there. Any thread."""
        return [driver.sever() for driver in self._drivers()]


def _text(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], cursor: object) -> str:
    """What a cursor's method is to execute."""
    sql = args[0] if args else next(iter(kwargs.values()), "")
    if type(sql) is str and name != "callproc":
        return sql
    if isinstance(sql, (bytes, bytearray)):
        sql = sql[:KEPT_TEXT].decode(errors="replace")
    elif hasattr(sql, "as_string"):
        # psycopg's objects for composed statements.
        sql = sql.as_string(cursor)
    return f"CALL {sql}" if name == "callproc" else str(sql)


def _rows(cursor: Any) -> int:
    rows = getattr(cursor, "rowcount", -1)
    # Drivers say "unknown" in different ways: None, -1 or that as an unsigned number.
    return rows if isinstance(rows, int) and 0 <= rows < 2**63 else -1


def _tag() -> str:
    """The comment that names the request that this thread serves, with a space behind; "" when it serves none."""
    request = current_or_none()
    return "" if request is None else f"/* {_NOT_IN_TAG.sub('', request.id)} */ "
