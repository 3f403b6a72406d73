"""Records what the statements on one connection do to the data."""

from __future__ import annotations

import contextlib

from threadbridge.database.driver import Session
from threadbridge.sql.effects import only_reads
from threadbridge.sql.statements import Statements
from threadbridge.sql.transaction import Effect, Transaction


class ChangeRecorder:
    """The open transaction of one connection, as its statements have left it.

    Each method takes the session of the driver's connection in use; None if the driver is unknown. It then assumes that
    any statement but a plain query may have done anything.
    """

    def __init__(self) -> None:
        self._transaction = Transaction()

    @property
    def has_changes(self) -> bool:
        """See `Transaction`."""
        return self._transaction.has_changes

    def begin_commit(self) -> None:
        """Record that a commit is about to be sent."""
        self._transaction.begin_commit()

    def record_unknown(self, statements: Statements) -> None:
        """Record that a request did something that cannot be observed."""
        self._transaction.record(Effect.UNKNOWN, statements)

    def record_success(self, session: Session | None, sql: str, statements: Statements | None) -> None:
        """Record that a statement succeeded.

        :param statements: those of the request that sent it; None if no request did.
        """
        if session is not None:
            self._transaction.record(session.effect(sql), statements)
        elif not only_reads(sql.encode(errors="replace")):
            self._transaction.record(Effect.UNKNOWN, statements)

    def record_failure(
        self,
        session: Session | None,
        sql: str,
        statements: Statements | None,
        error: BaseException,
        *,
        is_lost: bool,
        is_many: bool,
    ) -> None:
        """Record that a statement failed; parameters as for `record_success` and `Session.effect_of_failure`."""
        if session is not None:
            # A closed connection cannot tell, and has sent nothing.
            effect = Effect.ROLLED_BACK
            with contextlib.suppress(Exception):
                effect = session.effect_of_failure(sql, error, is_lost=is_lost, is_many=is_many)
            self._transaction.record(effect, statements)
        elif not only_reads(sql.encode(errors="replace")):
            self._transaction.record(Effect.UNKNOWN, statements)

    def record_rollback(self, session: Session | None) -> None:
        """Record that the transaction is rolled back, by a statement or because the connection ended. Any thread."""
        if not self._transaction.has_changes:
            return
        effect = Effect.ROLLED_BACK
        if session is not None:
            # A closed connection cannot tell.
            with contextlib.suppress(Exception):
                effect = session.effect("ROLLBACK")
        self._transaction.record(effect, None)
