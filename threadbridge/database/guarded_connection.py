"""Connections as the pool guard makes them: they know which requests hold them, and how to stop their statements."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.crossing.current import current_or_none, is_cancelled
from threadbridge.database.borrow import Borrow
from threadbridge.database.change_recorder import ChangeRecorder
from threadbridge.database.driver import Session
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.guard import Guard
from threadbridge.database.stopper import Orphan
from threadbridge.sql.statements import Statements

logger = logging.getLogger("threadbridge")

# Seconds for which a connection that worked when it came back, and whose socket is open, counts as alive.
FRESH = 1.0
# What the comment that names a request may not contain: it could end the comment, or be a parameter's placeholder.
_NOT_IN_TAG = re.compile(r"[^A-Za-z0-9._:-]")


class GuardedConnection(SteadyDBConnection):  # type: ignore[misc]
    """A connection that knows which requests hold it: one, or several if the pool shares connections.

    It is made unconnected, so that a request can hold it while it waits for `connect`. `Borrows` owns the attributes
    that `HeldConnection` names; the thread that uses the connection owns the rest.

    :param cursor_factory: makes a cursor, from this connection and the arguments of ``cursor``.

    Other parameters: see `SteadyDBConnection`.
    """

    # What `SteadyDBConnection` needs to close a connection that was never connected.
    _con: Any = None
    _closed = _closeable = True
    _transaction: bool

    def __init__(self, guard: Guard, cursor_factory: Callable[..., SteadyDBCursor], *args: Any, **kwargs: Any) -> None:
        self.guard = guard
        self._cursor_factory = cursor_factory
        self._parameters = (args, kwargs)
        self.borrows: list[Borrow] = []
        # True once a statement was stopped on it: a late stop must not hit another request's statement.
        self.must_close = False
        self.is_idle = False
        self.is_abandoned = False
        # How often it has come back. A cursor of an earlier lease must not touch the connection any more.
        self.lease = 0
        # The driver's connection in use, and the newest one, which differs while DBUtils replaces a broken one. None if
        # the driver is unknown.
        self._current: DriverConnection | None = None
        self._newest: DriverConnection | None = None
        # Whether nothing was sent since it was handed out, or since the last commit or rollback.
        self._is_untouched = True
        # Whether a statement has failed because the connection was lost.
        self._is_lost = False
        self._changes = ChangeRecorder()
        # Whether a rollback was sent whose answer is still to be read.
        self._is_rolling_back = False
        # By `time.monotonic`.
        self._came_back_at = 0.0

    def connect(self) -> None:
        """Connect. Raises what the driver raises."""
        args, kwargs = self._parameters
        super().__init__(*args, **kwargs)

    def _create(self) -> Any:
        # Otherwise DBUtils would run a stopped statement again on the new connection.
        self._refuse_if_cancelled()
        try:
            made = super()._create()
            if self._newest is not None and self._newest is not self._current:
                try:
                    self._newest.prepare(self.guard.connections, _tag if self.guard.tags_queries else None)
                except BaseException:
                    made.close()
                    raise
        except BaseException:
            self._newest = self._current
            self.guard.note_failed_connect()
            raise
        return made

    def _setsession(self, con: Any = None) -> None:
        """See `SteadyDBConnection`, which calls this first on each new connection."""
        database = self.guard.database_of(con)
        if database is not None:
            self._newest = DriverConnection(con, database)
        # Only now: whoever cancels or abandons the request from here on finds the connection, and can cut it.
        self._refuse_if_cancelled()
        super()._setsession(con)

    def _refuse_if_cancelled(self) -> None:
        """Raise the driver's error for a stopped statement if nobody waits for a new connection."""
        if self.is_abandoned or is_cancelled():
            raise self.guard.cancelled()

    def _store(self, con: Any) -> None:
        """See `SteadyDBConnection`: the driver's connection is in use from now on."""
        super()._store(con)
        self._is_lost = False
        self._current = self._newest

    def replace(self) -> None:
        """Continue on a new connection. Raises what the driver raises if none can be made."""
        made = self._create()
        self._close()
        self._store(made)

    def cursor(self, *args: Any, **kwargs: Any) -> SteadyDBCursor:
        """See `SteadyDBConnection`."""
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

    def new_cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A cursor of the driver's own."""
        return self._con.cursor(*args, **kwargs)

    @property
    def failures(self) -> Any:
        """The exceptions that may mean that the connection is broken. Any thread."""
        return self._failures

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
            self._changes.record_success(self._session, "BEGIN", None)

    def commit(self) -> None:
        """See `SteadyDBConnection`; a cancelled request cannot commit.

        A lost connection is not replaced: what is executed next must not be taken for the rest of its transaction.
        """
        borrow = self.guard.borrows.current(self)
        if borrow is not None and borrow.request.cancelled:
            borrow.refuse()
        has_changes = self._changes.has_changes
        if has_changes:
            self._announce("COMMIT")
            self._changes.begin_commit()
        try:
            self._con.commit()
        except BaseException as error:
            self.note_failure(None, "COMMIT", error)
            raise
        if has_changes:
            self._changes.record_success(self._session, "COMMIT", None)
        self._transaction = False
        self._end_transaction()

    def rollback(self) -> None:
        """See `SteadyDBConnection`."""
        before = self._con
        try:
            super().rollback()
        except BaseException as error:
            self.guard.note_failure(error)
            if self._con is not before or (self._current is not None and self.guard.is_lost(error)):
                # The database rolls back when it finds the connection broken.
                self._changes.record_rollback(self._session)
                self._end_transaction()
            raise
        self._changes.record_rollback(self._session)
        self._end_transaction()

    def _end_transaction(self) -> None:
        self._is_untouched = True
        if self._current is not None:
            self._current.session.ended_transaction()

    # Statements.

    def begin_statement(self, sql: str, cursor: object) -> bool:
        """Prepare to send a statement by a driver's cursor; returns whether it is the first, see `may_replace`."""
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
        self._announce("COPY")
        borrow = self.guard.borrows.current(self)
        if borrow is not None:
            self._changes.record_unknown(borrow.request.statements)

    def sending(self, sql: str, cursor: object) -> None:
        """Note that a statement is about to be sent, and count it for ``maxusage``."""
        self._usage += 1
        self._announce(sql, cursor)

    def _announce(self, sql: str, cursor: object = None) -> None:
        if self._current is not None:
            self._current.session.sending(sql, cursor)

    def note_success(self, statements: Statements, sql: str) -> None:
        """Record that a statement that may have changed data succeeded."""
        self._changes.record_success(self._session, sql, statements)

    def note_failure(
        self, statements: Statements | None, sql: str, error: BaseException, *, is_many: bool = False
    ) -> None:
        """Record that a statement failed, and perhaps its connection and transaction with it."""
        self.guard.note_failure(error)
        is_lost = self.guard.is_lost(error)
        if self.guard.is_outage(error) and not is_lost:
            # The transaction is still open until the connection is closed. A new connection may lead to a server that
            # can do its work.
            self.must_close = True
        self._changes.record_failure(self._session, sql, statements, error, is_lost=is_lost, is_many=is_many)
        if self._current is not None and is_lost:
            self._is_lost = True
            if self._current.session.commits_itself and not self._transaction:
                # Only this statement was lost.
                self._end_transaction()

    # The session.

    @property
    def _session(self) -> Session | None:
        return None if self._current is None else self._current.session

    @property
    def may_replace(self) -> bool:
        """Whether another connection would do as well, provided nothing was sent on this one yet."""
        # The application may have executed something directly on the driver's connection.
        has_changed = self._current is not None and not self._current.session.only_reads
        return not (has_changed or self._transaction or self._has_changed_session() or len(self.borrows) > 1)

    def _has_changed_session(self) -> bool:
        try:
            return self._current is not None and self._current.session.is_changed
        except self._failures:
            # A closed connection cannot tell.
            return True

    @property
    def only_reads(self) -> bool:
        """Whether only plain queries were sent since the last commit or rollback; False in doubt."""
        return self._current is not None and self._current.session.only_reads

    # Hand-back and hand-out.

    def clean(self, force: bool) -> None:
        """Roll back what is open as it comes back, or mark the connection to be closed. Any thread that may wait.

        :param force: roll back even if no transaction can be open.
        """
        self.lease += 1
        self.is_idle = True
        self._came_back_at = time.monotonic()
        if self.must_close:
            # The database rolls back when the connection is closed.
            self._changes.record_rollback(self._session)
            return
        try:
            if (self._maxusage and self._usage >= self._maxusage) or (
                self.guard.resets_sessions and self._has_changed_session()
            ):
                # The next request gets a new connection, and sees nothing of this session.
                self.must_close = True
                if not self.only_reads:
                    # Closing it would release its locks only later.
                    self._con.rollback()
            elif force or self._may_be_open():
                # Not by DBUtils' method, which would replace a broken connection that perhaps nobody needs.
                self._is_rolling_back = self._current is not None and self._current.session.begin_rollback()
                if not self._is_rolling_back:
                    self._con.rollback()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is closed for it
            # It may be broken, or have rows that nobody has fetched.
            logger.debug("a connection is closed instead of going back to the pool: %r", error)
            self.must_close = True
        self._changes.record_rollback(self._session)
        self._transaction = False
        self._is_untouched = True
        if not self._is_rolling_back:
            self._end_transaction()

    def _may_be_open(self) -> bool:
        """Whether a transaction may be open. It must not reach another request, nor may unread rows."""
        return self._transaction or self._current is None or self._current.session.may_be_open

    def _ping_check(self, ping: int = 1, reconnect: bool = True) -> Any:
        """See `SteadyDBConnection`; ``ping=1`` is the hand-out. A connection that came back just now is not pinged."""
        # A shared connection that others use may have an answer of theirs to read.
        was_idle = self.is_idle
        if ping == 1 and was_idle:
            self.is_idle = False
            self.finish_rollback()
            if self._pinger is None and time.monotonic() - self._came_back_at < FRESH and self._is_quiet():
                return True
            if self._current is not None and not self._is_quiet():
                # The server has closed it. This needs no answer, so it works even if the pool or driver cannot ping.
                self.replace()
        return super()._ping_check(ping, reconnect)

    def _is_quiet(self) -> bool:
        return self._current is not None and self._current.is_quiet()

    def finish_rollback(self) -> None:
        """Read the answer to a rollback under way.

        Replaces the connection if the rollback failed; raises the driver's error if that fails too.
        """
        if not self._is_rolling_back:
            return
        self._is_rolling_back = False
        try:
            self._current.session.end_rollback()  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is replaced for it
            logger.debug("a connection is replaced: %r", error)
            self.replace()

    # Stopping.

    @property
    def number(self) -> int | None:
        """The connection's number in the database's process list, if that is known. Any thread."""
        return None if self._current is None else self._current.number

    def _driver_connections(self) -> set[DriverConnection]:
        return {each for each in (self._current, self._newest) if each is not None}

    def stop_query(self, *, waits: bool = False) -> bool:
        """See `Database.stop_query`."""
        # On both, as one may be closed already.
        found = [each.stop_query(waits=waits) for each in self._driver_connections()]
        return any(found)

    def sever(self) -> Sequence[Orphan]:
        """See `DriverConnection.sever`. Any thread."""
        return [orphan for each in self._driver_connections() if (orphan := each.sever()) is not None]


def _tag() -> str:
    """The comment that names the request that this thread serves, and a space; "" if it serves none."""
    request = current_or_none()
    return "" if request is None else f"/* {_NOT_IN_TAG.sub('', request.id)} */ "
