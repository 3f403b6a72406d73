"""The connections that the pool guard makes: they know which requests hold them, and how to stop their statements."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.crossing.current import current_or_none, is_cancelled
from threadbridge.database.borrow import Borrow
from threadbridge.database.driver import Session, UnknownSession
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.drivers import noting_unfinished
from threadbridge.database.guard import Guard
from threadbridge.database.stopper import Orphan
from threadbridge.sql.statements import Statements
from threadbridge.sql.transaction import Effect, Transaction

logger = logging.getLogger("threadbridge")

# Seconds for which a connection that worked when it came back, and whose socket is open, counts as alive.
FRESH = 1.0
# Characters that could end the comment that names a request, or be a parameter's placeholder in it.
_NOT_IN_TAG = re.compile(r"[^A-Za-z0-9._:-]")


class GuardedConnection(SteadyDBConnection):  # type: ignore[misc]
    """A connection that knows which requests hold it; further parameters are those of `SteadyDBConnection`.

    It is made unconnected, so that a request can hold it while it waits for `connect`. `Guard` owns the attributes
    that `HeldConnection` names; the thread that uses the connection owns the rest.
    """

    # What `SteadyDBConnection` needs to close a connection that was never connected.
    _con: Any = None
    _closed = _closeable = True

    def __init__(self, guard: Guard, cursor_factory: Callable[..., SteadyDBCursor], *args: Any, **kwargs: Any) -> None:
        self.guard = guard
        self._cursor_factory = cursor_factory
        self._parameters = (args, kwargs)
        self.borrows: list[Borrow] = []
        # `must_close` is true once a statement was stopped: a late stop must not hit another request's statement.
        self.must_close = self.is_idle = self.is_abandoned = False
        # How often it has come back. A cursor of an earlier lease must no longer touch the connection.
        self.lease = 0
        # The driver's connection in use, and the newest one, which differs while a broken one is replaced. None if the
        # driver is unknown.
        self._current: DriverConnection | None = None
        self._newest: DriverConnection | None = None
        # Whether nothing was sent since it was handed out, or since the last commit or rollback.
        self._is_untouched = True
        self._is_lost = False
        self._session: Session = UnknownSession()
        self._changes = Transaction()
        # Reads the answer to a rollback that was sent; None if there is none to read.
        self._end_rollback: Callable[[], object] | None = None
        self._came_back_at = 0.0

    def connect(self) -> None:
        """Connect. Raises what the driver raises."""
        args, kwargs = self._parameters
        super().__init__(*args, **kwargs)

    def _create(self) -> Any:
        # Otherwise DBUtils would run a stopped statement again on the new connection.
        self._refuse_if_cancelled()
        try:
            with noting_unfinished(self._note_unfinished):
                made = super()._create()
            if self._newest is not None and self._newest is not self._current:
                try:
                    self._newest.prepare(self.guard.connections, _tag if self.guard.tags_queries else None)
                except BaseException:
                    made.close()
                    raise
        except BaseException:
            self._newest = self._current
            self.guard.last_outage = time.monotonic()
            raise
        return made

    def _setsession(self, con: Any = None) -> None:
        """See `SteadyDBConnection`, which calls this first on each new connection."""
        self._note_unfinished(con)
        super()._setsession(con)

    def _note_unfinished(self, con: Any) -> None:
        """From here on, a thread that cancels or abandons the request finds the connection, and can cut it."""
        database = self.guard.database_of(con)
        if database is not None and not (self._newest is not None and self._newest.is_of(con)):
            self._newest = DriverConnection(con, database)
        self._refuse_if_cancelled()

    def _refuse_if_cancelled(self) -> None:
        if self.is_abandoned or is_cancelled():
            raise self.guard.cancelled()

    def _store(self, con: Any) -> None:
        super()._store(con)
        self._is_lost = False
        self._current = self._newest
        self._session = UnknownSession() if self._current is None else self._current.session

    def replace(self) -> None:
        """Continue on a new connection. Raises what the driver raises."""
        made = self._create()
        self._close()
        self._store(made)

    def cursor(self, *args: Any, **kwargs: Any) -> SteadyDBCursor:
        return self._cursor_factory(self, *args, **kwargs)

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

    # Transactions.

    def begin(self, *args: Any, **kwargs: Any) -> None:
        self._is_untouched = False
        try:
            super().begin(*args, **kwargs)
        except BaseException as error:
            self.note_failure(None, "BEGIN", error)
            raise
        if hasattr(self._con, "begin"):
            self._changes.record(self._session.effect("BEGIN"), None)

    def commit(self) -> None:
        """See `SteadyDBConnection`; a cancelled request cannot commit."""
        borrow = self.guard.current_borrow(self)
        if borrow is not None and borrow.request.cancelled:
            borrow.refuse()
        has_changes = bool(self._changes.open)
        if has_changes:
            self._session.sending("COMMIT", None)
            self._changes.begin_commit()
        try:
            # A lost connection is not replaced: later statements must not be taken for the rest of its transaction.
            self._con.commit()
        except BaseException as error:
            self.note_failure(None, "COMMIT", error)
            raise
        if has_changes:
            self._changes.record(self._session.effect("COMMIT"), None)
        self._transaction = False
        self._end_transaction()

    def rollback(self) -> None:
        before = self._con
        try:
            super().rollback()
        except BaseException as error:
            self.guard.note_failure(error)
            if self._con is not before or (self._current is not None and self.guard.is_lost(error)):
                # The database rolls back when it finds the connection broken.
                self._record_rollback()
                self._end_transaction()
            raise
        self._record_rollback()
        self._end_transaction()

    def _record_rollback(self) -> None:
        if self._changes.open:
            effect = Effect.ROLLED_BACK
            # A closed connection cannot tell.
            with contextlib.suppress(Exception):
                effect = self._session.effect("ROLLBACK")
            self._changes.record(effect, None)

    def _end_transaction(self) -> None:
        self._is_untouched = True
        self._session.ended_transaction()

    # Statements.

    def begin_statement(self, sql: str, cursor: object) -> bool:
        """Prepare to send a statement; returns whether it is the first, so that the connection may be replaced."""
        is_first = self._is_untouched
        if is_first and (self._is_lost or self._ping & 4) and self.may_replace:
            if self._is_lost:
                self.replace()
            else:
                self._ping_check(4)
        self._is_untouched = False
        self.sending(sql, cursor)
        return is_first

    def begin_unobserved(self) -> None:
        """Prepare for a method that may change data and whose end is not observed."""
        self._is_untouched = False
        self._session.sending("COPY", None)
        borrow = self.guard.current_borrow(self)
        if borrow is not None:
            self._changes.record(Effect.UNKNOWN, borrow.request.statements)

    def sending(self, sql: str, cursor: object) -> None:
        """Note that a statement is about to be sent, and count it for ``maxusage``."""
        self._usage += 1
        self._session.sending(sql, cursor)

    def note_success(self, statements: Statements, sql: str) -> None:
        """Record that a statement succeeded."""
        if not self._session.only_reads:
            self._changes.record(self._session.effect(sql), statements)

    def note_failure(
        self, statements: Statements | None, sql: str, error: BaseException, *, is_many: bool = False
    ) -> None:
        """Record that a statement failed, and perhaps its connection and transaction with it."""
        self.guard.note_failure(error)
        is_lost = self.guard.is_lost(error)
        if self.guard.is_outage(error) and not is_lost:
            # The transaction stays open until the connection is closed. A new one may lead to a server that works.
            self.must_close = True
        # A closed connection cannot tell, and has sent nothing.
        effect = Effect.ROLLED_BACK
        with contextlib.suppress(Exception):
            effect = self._session.effect_of_failure(sql, error, is_lost=is_lost, is_many=is_many)
        self._changes.record(effect, statements)
        if self._current is not None and is_lost:
            self._is_lost = True
            if self._session.commits_itself and not self._transaction:
                # Only this statement was lost.
                self._end_transaction()

    @property
    def may_replace(self) -> bool:
        """Whether another connection would do as well, provided nothing was sent on this one yet."""
        # The application may have used the driver's connection directly.
        is_clean = self._session.only_reads and not self._transaction
        return is_clean and len(self.borrows) < 2 and not self._has_changed_session()

    def _has_changed_session(self) -> bool:
        try:
            return self._session.is_changed
        except self._failures:
            # A closed connection cannot tell.
            return True

    # Hand-back and hand-out.

    def clean(self, force: bool) -> None:
        """Roll back what is open (with ``force``, in any case), or set `must_close`. Any thread that may wait."""
        self.lease += 1
        self.is_idle = True
        self._came_back_at = time.monotonic()
        if self.must_close:
            # The database rolls back when the connection is closed.
            self._record_rollback()
            return
        is_used_up = self._maxusage and self._usage >= self._maxusage
        try:
            if is_used_up or (self.guard.resets_sessions and self._has_changed_session()):
                self.must_close = True
                if not self._session.only_reads:
                    # Closing it would release its locks only later.
                    self._con.rollback()
            elif force or self._transaction or self._session.may_be_open:
                # DBUtils' method would replace a broken connection even if it is never needed.
                self._end_rollback = self._session.begin_rollback()
                if self._end_rollback is None:
                    self._con.rollback()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is closed for it
            logger.debug("a connection is closed instead of going back to the pool: %r", error)
            self.must_close = True
        self._record_rollback()
        self._transaction = False
        self._is_untouched = True
        if self._end_rollback is None:
            self._end_transaction()

    def _ping_check(self, ping: int = 1, reconnect: bool = True) -> Any:
        """See `SteadyDBConnection`; ``ping=1`` is the hand-out. A connection that came back just now is not pinged."""
        # A shared connection that others use may have an answer of theirs to read.
        if ping == 1 and self.is_idle:
            self.is_idle = False
            self.finish_rollback()
            if self._current is not None:
                if not self._current.is_quiet():
                    # The server has closed it. Without an answer, this works even if the pool or driver cannot ping.
                    self.replace()
                elif self._pinger is None and time.monotonic() - self._came_back_at < FRESH:
                    return True
        return super()._ping_check(ping, reconnect)

    def finish_rollback(self) -> None:
        """Read the answer to a rollback under way; replace the connection if it failed. Raises the driver's error."""
        if self._end_rollback is not None:
            end, self._end_rollback = self._end_rollback, None
            try:
                end()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is replaced for it
                logger.debug("a connection is replaced: %r", error)
                self.replace()

    # Stopping.

    @property
    def number(self) -> int | None:
        """The connection's number in the database's process list, if that is known. Any thread."""
        return self._current.identity.number if self._current and self._current.identity else None

    def driver_connections(self) -> set[DriverConnection]:
        """See `HeldConnection`."""
        return {each for each in (self._current, self._newest) if each is not None}

    def sever(self) -> Sequence[Orphan]:
        """See `DriverConnection.sever`. Any thread."""
        return [orphan for each in self.driver_connections() if (orphan := each.sever()) is not None]


def _tag() -> str:
    """The comment that names the request that this thread serves, and a space; "" if it serves none."""
    request = current_or_none()
    return "" if request is None else f"/* {_NOT_IN_TAG.sub('', request.id)} */ "
