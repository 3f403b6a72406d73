"""A pool's connection with what the guard keeps of it: each statement is recorded, and none runs once it is refused."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.current import current_or_none, is_cancelled
from threadbridge.database.borrow import Borrow, borrow_of
from threadbridge.database.driver import ReplicatedDatabase, Session, UnknownSession
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.drivers.connecting import noting_unfinished
from threadbridge.database.guard import Guard
from threadbridge.database.stopper import Orphan
from threadbridge.database.tags import tagged
from threadbridge.sql.mask import masked
from threadbridge.sql.statements import MAX_TEXT, Statements
from threadbridge.sql.transaction import Effect, Transaction

logger = logging.getLogger("threadbridge")
_refused = RepeatedLog(logger)

# What traces are told of a database whose driver is not supported, or tells nothing.
_UNKNOWN: Mapping[str, str | int] = {"db.system.name": "other_sql"}
_ROLLBACK = re.compile(r"\s*rollback\b", re.IGNORECASE).match


class TrackedConnection:
    """A `HeldConnection` that can be made while a request holds it already, so that the request waits for `make`.

    `Guard` owns the attributes that `HeldConnection` names; the thread that uses the connection owns the rest.
    """

    # Whether the texts of statements have their values in them, which are not recorded.
    has_values = False

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.borrows: list[Borrow] = []
        # `must_close` is true once a statement was stopped: a late stop must not hit another request's statement.
        self.must_close = self.is_idle = self.is_abandoned = False
        # The driver's connection in use, and the newest one, which differs while a broken one is replaced. None if the
        # driver is unknown.
        self._current: DriverConnection | None = None
        self._newest: DriverConnection | None = None
        self._session: Session = UnknownSession()
        self._changes = Transaction()
        # For pools that replace a connection that was cut: whether this one was, so that it must not go back. Under the
        # guard's lock.
        self.is_cut = False

    # Making.

    def make(self, connect: Callable[[], Any]) -> Any:
        """Connect, and return the driver's connection, which `use` puts to use. Raises what the driver raises."""
        # A stopped statement must not run again on a new connection.
        self._refuse_if_cancelled()
        try:
            with noting_unfinished(self.note_unfinished):
                made = connect()
            try:
                self.note_unfinished(made)
                if self._newest is not None and self._newest is not self._current:
                    self._newest.prepare(self.guard.connections, tagged if self.guard.tags_queries else None)
                    self.guard.note_made(self._newest)
            except BaseException:
                made.close()
                raise
        except BaseException:
            self._newest = self._current
            self.guard.last_outage = time.monotonic()
            raise
        return made

    def make_for_current(self, connect: Callable[[], Any]) -> Any:
        """Connect while the request that this thread serves, if any, holds the connection; put it to use.

        Raises what the driver raises.
        """
        self.guard.lend_to_current(self)
        try:
            made = self.make(connect)
        except BaseException:
            self.guard.end_borrows(self.borrows)
            raise
        self.use()
        self.guard.keep_control()
        return made

    def note_unfinished(self, made: Any) -> None:
        """From here on, a thread that cancels or abandons the request finds the driver's connection, and can cut it."""
        database = self.guard.database_of(made)
        if database is not None and not (self._newest is not None and self._newest.is_of(made)):
            self._newest = DriverConnection(made, database)
        self._refuse_if_cancelled()

    def _refuse_if_cancelled(self) -> None:
        if self.is_abandoned or is_cancelled():
            raise self.guard.cancelled()

    def use(self) -> None:
        """Continue with the driver's connection that was made last."""
        self._current = self._newest
        self._session = UnknownSession() if self._current is None else self._current.session

    # Statements.

    def execute(self, sql: str, cursor: Any, call: Callable[..., Any], *args: Any, is_many: bool = False) -> Any:
        """Execute a statement by calling ``call(*args)``, unless the request is cancelled; a rollback is let through.

        Raises what the driver raises.
        """
        self._session.sending(sql, cursor)
        return self.run(sql, cursor, is_many, call, *args)

    def run(self, sql: str, cursor: Any, is_many: bool, call: Callable[..., Any], *args: Any) -> Any:
        """Like `execute`; ``call`` itself tells the session what it sends."""
        guard = self.guard
        borrow = guard.current_borrow(self)
        request = current_or_none() if borrow is None else borrow.request
        if request is None:
            return call(*args)
        if request.cancelled and _ROLLBACK(sql) is not None:
            return call(*args) if borrow is None else borrow.unstopped(call, *args)
        statements = request.statements
        statement = statements.begin(masked(sql[:MAX_TEXT]) if self.has_values else sql, self.number)
        trace = request.trace
        begun = None if trace is None else trace.begin_statement(statement, self._attributes)
        try:
            result = call(*args) if borrow is None else borrow.execute(call, *args)
        except BaseException as error:
            statements.end(statement, error=type(error).__name__)
            if trace is not None:
                trace.end_statement(begun, statement)
            if borrow is None or not borrow.has_refused:
                self.note_failure(statements, sql, error, is_many=is_many)
            raise
        statements.end(statement, rows=_rows(cursor))
        if trace is not None:
            trace.end_statement(begun, statement)
        guard.last_success = statement.ended
        if not self._session.only_reads:
            self._changes.record(self._session.effect(sql), statements)
            if self._session.commits_itself and not self._changes.open:
                # Otherwise the effects of all further statements, even of plain queries, would be determined.
                self.end_transaction()
        return result

    def begin_unobserved(self) -> Borrow | None:
        """Prepare for a method that may change data and whose end is not observed; returns the borrow, if any."""
        self._session.sending("COPY", None)
        borrow = self.guard.current_borrow(self)
        if borrow is not None:
            self._changes.record(Effect.UNKNOWN, borrow.request.statements)
        return borrow

    def note_failure(
        self, statements: Statements | None, sql: str, error: BaseException, *, is_many: bool = False
    ) -> None:
        """Record that a statement failed, and perhaps its connection and transaction with it."""
        self.guard.note_failure(error)
        if self.guard.settings.is_replica:
            self._explain_refused_change(error)
        is_lost = self.guard.is_lost(error)
        if self.guard.is_outage(error) and not is_lost:
            # The transaction stays open until the connection is closed. A new one may lead to a server that works.
            self.must_close = True
        # A closed connection cannot tell, and has sent nothing.
        effect = Effect.ROLLED_BACK
        with contextlib.suppress(Exception):
            effect = self._session.effect_of_failure(sql, error, is_lost=is_lost, is_many=is_many)
        self._changes.record(effect, statements)

    def _explain_refused_change(self, error: BaseException) -> None:
        database = None if self._current is None else self._current.database
        # Django raises its own errors, with the driver's as the cause.
        if isinstance(database, ReplicatedDatabase) and any(
            database.replication().is_refused_change(each) for each in (error, error.__cause__) if each is not None
        ):
            request = current_or_none()
            message = (
                "request %s: a change was refused, because the pool of the lane %s leads to a replica; nothing was "
                "changed. Use POST for what changes something, or leave its path out of the lane"
            )
            _refused.log(logging.WARNING, message, "-" if request is None else request.id, self.guard.key)

    # Transactions.

    def commit_by(self, call: Callable[[], object]) -> None:
        """Commit by calling ``call()``, unless the request is cancelled. Raises what the driver raises."""
        borrow = self.guard.current_borrow(self)
        if borrow is not None and borrow.request.cancelled:
            borrow.refuse()
        if self.is_idle and is_cancelled():
            # It is being handed back, by a pool that commits then.
            raise self.guard.cancelled()
        has_changes = bool(self._changes.open)
        if has_changes:
            self._session.sending("COMMIT", None)
            self._changes.begin_commit()
        try:
            call()
        except BaseException as error:
            self.note_failure(None, "COMMIT", error)
            raise
        if has_changes:
            self._changes.record(self._session.effect("COMMIT"), None)
        self.end_transaction()

    def roll_back_by(self, call: Callable[[], object]) -> None:
        """Roll back by calling ``call()``. Raises what the driver raises."""
        try:
            self.unstopped(call)
        except BaseException as error:
            self.guard.note_failure(error)
            if self._current is not None and self.guard.is_lost(error):
                # The database rolls back when it finds the connection broken.
                self.note_rollback()
                self.end_transaction()
            raise
        self.note_rollback()
        self.end_transaction()

    def unstopped(self, call: Callable[[], Any]) -> Any:
        """Call what rolls back: neither refused nor met by a stop."""
        borrow = borrow_of(self, current_or_none())
        return call() if borrow is None else borrow.unstopped(call)

    def note_rollback(self) -> None:
        """Record that the open transaction has been rolled back, or ends with its connection."""
        if self._changes.open:
            effect = Effect.ROLLED_BACK
            # A closed connection cannot tell.
            with contextlib.suppress(Exception):
                effect = self._session.effect("ROLLBACK")
            self._changes.record(effect, None)

    def end_transaction(self) -> None:
        """Note that a commit or a rollback has succeeded."""
        self._session.ended_transaction()

    @property
    def may_have_transaction(self) -> bool:
        """Whether a transaction may be open, by what was sent since the last commit or rollback."""
        try:
            return self._session.may_be_open
        except Exception:  # noqa: BLE001 - whatever the driver raises: a closed connection cannot tell
            return True

    @property
    def has_changed_session(self) -> bool:
        """Whether variables, temporary tables, locks or settings may differ from those when it was made."""
        try:
            return self._session.is_changed
        except Exception:  # noqa: BLE001 - whatever the driver raises: a closed connection cannot tell
            return True

    # Stopping.

    @property
    def number(self) -> int | None:
        """The connection's number in the database's process list, if that is known. Any thread."""
        return self._current.identity.number if self._current and self._current.identity else None

    @property
    def _attributes(self) -> Mapping[str, str | int]:
        """The database in traces."""
        return getattr(self._current and self._current.database, "attributes", _UNKNOWN)

    def driver_connections(self) -> set[DriverConnection]:
        """See `HeldConnection`."""
        return {each for each in (self._current, self._newest) if each is not None}

    def sever(self) -> Sequence[Orphan]:
        """See `DriverConnection.sever`. Any thread."""
        return [orphan for each in self.driver_connections() if (orphan := each.sever()) is not None]


def _rows(cursor: Any) -> int:
    rows = getattr(cursor, "rowcount", -1)
    # For "unknown", drivers give None, -1, or -1 as an unsigned number.
    return rows if isinstance(rows, int) and 0 <= rows < 2**63 else -1
