"""Connections as the pool guard makes them: they know for which requests they are in use, and how to stop for them."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from dbutils.steady_db import SteadyDBConnection

from threadbridge.crossing.current import RunningRequest, current_or_none
from threadbridge.database.borrow import Borrow
from threadbridge.database.driver import Database
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.guarded_cursor import GuardedCursor
from threadbridge.database.predecessors import ConnectionList, Left
from threadbridge.sql.effects import only_reads
from threadbridge.sql.statements import Statements
from threadbridge.sql.transaction import Effect, Transaction

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

    def note_failed_connect(self) -> None: ...

    def may_repeat(self, error: Exception, sql: str) -> bool: ...

    def is_outage(self, error: BaseException) -> bool: ...

    def is_lost(self, error: BaseException) -> bool: ...

    def database_of(self, connection: object) -> Database | None: ...

    def cancelled(self) -> Exception: ...

    def defer(self, task: Callable[[], None]) -> bool: ...

    def lend_kept(self, steady: GuardedConnection, request: RunningRequest) -> Borrow | None: ...

    def keep_from_others(self, connection: GuardedConnection, borrow: Borrow) -> bool: ...

    def end(self, borrows: Iterable[Borrow]) -> None: ...


class GuardedConnection(SteadyDBConnection):  # type: ignore[misc]
    """A connection that knows for which requests it is in use: one, or several if the pool shares connections.

    It is made without being connected, so that it can be in use by a request that waits for `connect`.
    """

    # What `SteadyDBConnection` needs to close one that was never connected.
    _con: Any = None
    _closed = _closeable = True
    _transaction: bool

    def __init__(self, guard: Guard, *args: Any, **kwargs: Any) -> None:
        self.guard = guard
        self._parameters = (args, kwargs)
        self.borrows: list[Borrow] = []
        # One on which a statement was stopped is closed when it comes back, and never handed out again: no stop can
        # come late and hit somebody else's statement.
        self.spoilt = False
        # Which time this is that it is handed out; whether it has come back since.
        self.lease = 0
        self.is_idle = False
        # The driver's connection in use, and the last that was made: another one while DBUtils replaces a broken one.
        self._driver: DriverConnection | None = None
        self._made: DriverConnection | None = None
        # Whether nothing was sent since it was handed out, or since the last commit or rollback.
        self._is_untouched = True
        # Whether a statement has failed because the connection was lost.
        self._is_lost = False
        self._changes = Transaction()
        # Whether the pool counts it no more, see `PoolGuard.abandon`.
        self.is_abandoned = False
        # Whether the answer to a rollback is still to be read; when, by the monotonic clock, it last came back.
        self._is_rolling_back = False
        self._came_back_at = 0.0

    def connect(self) -> None:
        """Connect. Worker side. Raises what the driver raises."""
        args, kwargs = self._parameters
        super().__init__(*args, **kwargs)

    def _create(self) -> Any:
        # DBUtils would run the stopped statement again on it.
        self._refuse_unwanted()
        try:
            made = super()._create()
            if self._made is not None and self._made is not self._driver:
                try:
                    self._made.prepare(self.guard.connections, _tag if self.guard.tags_queries else None)
                except BaseException:
                    made.close()
                    raise
        except BaseException:
            self._made = self._driver
            self.guard.note_failed_connect()
            raise
        return made

    def _setsession(self, con: Any = None) -> None:
        """See `SteadyDBConnection`, which calls it first of all on a new connection."""
        database = self.guard.database_of(con)
        if database is not None:
            self._made = DriverConnection(con, database)
        # Only now: whoever gives up the request from here on finds the connection, and can cut it.
        self._refuse_unwanted()
        super()._setsession(con)

    def _refuse_unwanted(self) -> None:
        """Raise the driver's error for a stopped statement if nobody waits for a new connection."""
        request = current_or_none()
        if self.is_abandoned or (request is not None and request.cancelled):
            raise self.guard.cancelled()

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
        borrow = self.borrow()
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
        is_first = self._is_untouched
        if is_first and (self._is_lost or self._ping & 4) and self.may_replace:
            if self._is_lost:
                self.replace()
            else:
                self._ping_check(4)
        self._is_untouched = False
        self.sending(sql, cursor)
        return is_first

    def begin_unseen(self) -> None:
        """Something is about to be sent that may change data, by a method that is not guarded. Worker side."""
        self._is_untouched = False
        self.announce("COPY")
        borrow = self.borrow()
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
            if is_lost:
                self._is_lost = True
                if self._driver.session.commits_itself and not self._transaction:
                    # Nothing else was lost with it.
                    self._end_transaction()
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
        self.is_idle = True
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
        return self._transaction or self._driver is None or self._driver.session.may_be_open

    def _ping_check(self, ping: int = 1, reconnect: bool = True) -> Any:
        """See `SteadyDBConnection`; with 1 it is handed out. One that came back just now is not asked again."""
        # One that others use has perhaps an answer of theirs to read.
        was_idle = self.is_idle
        if ping == 1 and was_idle:
            self.is_idle = False
            self.settle()
            if self._pinger is None and time.monotonic() - self._came_back_at < FRESH and self._is_quiet():
                return True
            if self._driver is not None and not self._is_quiet():
                # It is closed. To see that needs no answer, also where the pool or the driver cannot ask the database.
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

    def borrow(self) -> Borrow | None:
        """The hold on this connection of the request for which it is used now, if it is used for one. Worker side.

        A connection that the application has kept is lent to each request that uses it. In a thread of the
        application's own, it is the hold of the only request that has the connection.
        """
        request = current_or_none()
        if request is None:
            borrows = tuple(self.borrows)
            return borrows[0] if len(borrows) == 1 else None
        return self.borrow_of(request) or self.guard.lend_kept(self, request)

    def borrow_of(self, request: RunningRequest | None) -> Borrow | None:
        """The request's hold on this connection, if it has one. Any thread."""
        for borrow in tuple(self.borrows):
            if borrow.request is request:
                return borrow
        return None

    def _store(self, con: Any) -> None:
        """See `SteadyDBConnection`: the driver's connection is in use from now on."""
        super()._store(con)
        self._is_lost = False
        self._driver = self._made

    @property
    def number(self) -> int | None:
        """Its number in the database's process list, if that is known. Any thread."""
        return None if self._driver is None else self._driver.number

    def _drivers(self) -> set[DriverConnection]:
        return {driver for driver in (self._driver, self._made) if driver is not None}

    def stop(self, *, waits: bool = False) -> bool:
        """Stop the statement that runs on it; whether there is one. See `Database.stop`."""
        # All of them: one may be gone already.
        found = [driver.stop(waits=waits) for driver in self._drivers()]
        return any(found)

    def sever(self) -> Sequence[Left]:
        """Have whoever waits for the database on it fail at once; what is left of it there. Any thread."""
        return [left for driver in self._drivers() if (left := driver.sever()) is not None]


def _tag() -> str:
    """The comment that names the request that this thread serves, with a space behind; "" when it serves none."""
    request = current_or_none()
    return "" if request is None else f"/* {_NOT_IN_TAG.sub('', request.id)} */ "
