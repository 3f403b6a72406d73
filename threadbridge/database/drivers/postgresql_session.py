"""The session of one PostgreSQL connection: what its statements do to transactions, and whether it was changed."""

from __future__ import annotations

import weakref
from typing import Any

from threadbridge.sql.effects import bare, in_words, may_change_session, only_reads
from threadbridge.sql.transaction import Effect, Effects

# libpq's transaction states: whether a transaction is open, and whether it has failed.
IDLE, ACTIVE, IN_TRANSACTION, IN_ERROR, LOST = range(5)

# What statements do to their transaction. Others may call functions that write, but within a transaction they cannot
# commit.
_EFFECTS = Effects(
    {
        Effect.NOTHING: b"select show values table fetch move close declare savepoint release set reset discard listen "
        b"unlisten notify lock prepare deallocate begin start analyze vacuum checkpoint explain with",
        Effect.CHANGED: b"insert update delete merge truncate create drop alter refresh comment grant revoke import",
        Effect.COMMITTED: b"commit end",
        Effect.ROLLED_BACK: b"rollback abort",
    },
    [
        (rb"prepare transaction\b|(?:commit|rollback) prepared\b", Effect.UNKNOWN),
        (rb"rollback (?:.* )?to\b", Effect.PARTLY_ROLLED_BACK),
        (rb"select .*\binto\b", Effect.CHANGED),
        (rb"with .*\b(?:insert into|delete from|merge into|update .* set)\b", Effect.CHANGED),
        (rb"with .*\binto\b", Effect.PERHAPS_CHANGED),
        (rb"explain .*\banalyze\b", Effect.PERHAPS_CHANGED),
    ],
    Effect.PERHAPS_CHANGED,
)


class PostgreSQLSession:
    """Sees the statements that cursors send on a connection. See `Session`."""

    def __init__(self, connection: Any) -> None:
        # No reference cycle: a connection that is forgotten is closed at once.
        self._connection = weakref.ref(connection)
        self._made_with_autocommit = bool(connection.autocommit)
        self.only_reads = True
        self._is_changed = False
        # The state before the last statement that was no plain query.
        self._before = IDLE

    def sending(self, sql: str, cursor: object) -> None:
        text = sql.encode(errors="replace")
        if not only_reads(text) or b"set_config" in text:
            self._before = self._state
            self.only_reads = False
            self._is_changed = self._is_changed or b"set_config" in text or may_change_session(text, postgresql=True)

    @property
    def _state(self) -> int:
        connection: Any = self._connection()
        return int(connection.info.transaction_status)

    def effect(self, sql: str) -> Effect:
        effect = _effect(sql)
        if effect is Effect.COMMITTED:
            return Effect.ROLLED_BACK if self._before == IN_ERROR else Effect.COMMITTED
        if effect not in (Effect.CHANGED, Effect.PERHAPS_CHANGED):
            return effect
        after = self._state
        if after == IN_TRANSACTION:
            return effect
        is_autocommit = self._before == after == IDLE
        return Effect.CHANGED_AND_COMMITTED if is_autocommit and effect is Effect.CHANGED else Effect.UNKNOWN

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        """See `Session`. The driver's state says more about the connection than ``is_lost``."""
        effect, after = _effect(sql), self._state
        changes = effect in (Effect.CHANGED, Effect.PERHAPS_CHANGED)
        if effect is Effect.UNKNOWN:
            return effect
        if effect is Effect.COMMITTED:
            # A commit that a constraint refused has rolled back.
            is_certain = self._before == IN_ERROR or after == IDLE
            return Effect.ROLLED_BACK if is_certain else Effect.PERHAPS_COMMITTED
        if after == LOST:
            return Effect.UNKNOWN if changes and self.commits_itself else Effect.ROLLED_BACK
        if after == IDLE and changes and (is_many or effect is Effect.PERHAPS_CHANGED):
            return Effect.UNKNOWN
        if after == IN_TRANSACTION and changes and is_many:
            return Effect.PERHAPS_CHANGED
        # The transaction has failed, but is not over: it may continue from a savepoint.
        return Effect.NOTHING

    @property
    def commits_itself(self) -> bool:
        return self._before == IDLE and self._autocommits_now()

    def ended_transaction(self) -> None:
        self.only_reads = True

    @property
    def may_be_open(self) -> bool:
        return self._state != IDLE

    @property
    def is_changed(self) -> bool:
        return self._is_changed or self._autocommits_now() != self._made_with_autocommit

    def _autocommits_now(self) -> bool:
        return bool(self._connection().autocommit)  # type: ignore[union-attr]

    def begin_rollback(self) -> None:
        """See `Session`. The drivers cannot send anything without waiting for the answer."""


def _effect(sql: str) -> Effect:
    """What a statement does to its transaction if it succeeds, by its text."""
    return _EFFECTS.of(in_words(bare(sql.encode(errors="replace"), postgresql=True)))
