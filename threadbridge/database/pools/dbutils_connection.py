"""The connections that the guard of a ``PooledDB`` makes: those of DBUtils, but none is replaced in a transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from dbutils.pooled_db import PooledDedicatedDBConnection
from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from threadbridge.database.borrow import Borrow
from threadbridge.database.guard import Guard
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.sql.statements import Statements

logger = logging.getLogger("threadbridge")

# Seconds for which a connection that worked when it came back, and whose socket is open, counts as alive.
FRESH = 1.0


class DedicatedConnection(PooledDedicatedDBConnection):  # type: ignore[misc]
    """What the application gets; it has the driver's own methods, too: some libraries call them."""

    def __getattr__(self, name: str) -> Any:
        steady = self._con
        try:
            return getattr(steady, name)
        except AttributeError:
            if steady is None or name.startswith("_") or not hasattr(steady._con, name):
                return super().__getattr__(name)
            return getattr(steady._con, name)


class GuardedConnection(TrackedConnection, SteadyDBConnection):  # type: ignore[misc]
    """A connection that knows which requests hold it; further parameters are those of `SteadyDBConnection`."""

    # What `SteadyDBConnection` needs to close a connection that was never connected.
    _con: Any = None
    _closed = _closeable = True

    def __init__(self, guard: Guard, cursor_factory: Callable[..., SteadyDBCursor], *args: Any, **kwargs: Any) -> None:
        super().__init__(guard)
        self._cursor_factory = cursor_factory
        self._parameters = (args, kwargs)
        # How often it has come back. A cursor of an earlier lease must no longer touch the connection.
        self.lease = 0
        # Whether nothing was sent since it was handed out, or since the last commit or rollback.
        self._is_untouched = True
        self._is_lost = False
        # Reads the answer to a rollback that was sent; None if there is none to read.
        self._end_rollback: Callable[[], object] | None = None
        self._came_back_at = 0.0

    def connect(self) -> None:
        """Connect. Raises what the driver raises."""
        args, kwargs = self._parameters
        SteadyDBConnection.__init__(self, *args, **kwargs)

    def _create(self) -> Any:
        return self.make(super()._create)

    def _setsession(self, con: Any = None) -> None:
        """See `SteadyDBConnection`, which calls this first on each new connection."""
        self.note_unfinished(con)
        super()._setsession(con)

    def _store(self, con: Any) -> None:
        super()._store(con)
        self._is_lost = False
        self.use()

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
        # A lost connection is not replaced: later statements must not be taken for the rest of its transaction.
        self.commit_by(self._con.commit)
        self._transaction = False

    def rollback(self) -> None:
        before = self._con
        try:
            self.roll_back_by(super().rollback)
        except BaseException:
            if self._con is not before:
                # The database has rolled back with the connection that was replaced.
                self.note_rollback()
                self.end_transaction()
            raise

    def end_transaction(self) -> None:
        self._is_untouched = True
        super().end_transaction()

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

    def begin_unobserved(self) -> Borrow | None:
        self._is_untouched = False
        return super().begin_unobserved()

    def sending(self, sql: str, cursor: object) -> None:
        """Note that a statement is about to be sent, and count it for ``maxusage``."""
        self._usage += 1
        self._session.sending(sql, cursor)

    def note_failure(
        self, statements: Statements | None, sql: str, error: BaseException, *, is_many: bool = False
    ) -> None:
        super().note_failure(statements, sql, error, is_many=is_many)
        if self._current is not None and self.guard.is_lost(error):
            self._is_lost = True
            if self._session.commits_itself and not self._transaction:
                # Only this statement was lost.
                self.end_transaction()

    @property
    def may_replace(self) -> bool:
        """Whether another connection would do as well, provided nothing was sent on this one yet."""
        # The application may have used the driver's connection directly.
        is_clean = self._session.only_reads and not self._transaction
        return is_clean and len(self.borrows) < 2 and not self.has_changed_session

    # Hand-back and hand-out.

    def clean(self, force: bool) -> None:
        """Roll back what is open (with ``force``, in any case), or set `must_close`. Any thread that may wait."""
        self.lease += 1
        self.is_idle = True
        self._came_back_at = time.monotonic()
        if self.must_close:
            # The database rolls back when the connection is closed.
            self.note_rollback()
            return
        is_used_up = self._maxusage and self._usage >= self._maxusage
        try:
            if is_used_up or (self.guard.resets_sessions and self.has_changed_session):
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
        self.note_rollback()
        self._transaction = False
        self._is_untouched = True
        if self._end_rollback is None:
            self.end_transaction()

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
