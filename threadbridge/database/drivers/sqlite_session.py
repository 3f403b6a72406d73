"""The session of one SQLite connection: what its statements do to transactions, and whether it was changed."""

from __future__ import annotations

from typing import Any

from threadbridge.sql.effects import bare, in_words, may_change_session, only_reads
from threadbridge.sql.transaction import Effect, Effects

# What statements do to the open transaction. All that change anything do so within a transaction.
_EFFECTS = Effects(
    {
        Effect.NOTHING: b"select values explain pragma attach detach savepoint release with",
        Effect.CHANGED: b"insert update delete replace create drop alter analyze reindex vacuum",
        Effect.COMMITTED: b"begin commit end",
        Effect.ROLLED_BACK: b"rollback",
    },
    [
        (rb"rollback (?:.* )?to\b", Effect.PARTLY_ROLLED_BACK),
        (rb"with .*\b(?:insert|replace|delete|update)\b", Effect.CHANGED),
    ],
    Effect.UNKNOWN,
)


class SQLiteSession:
    """Sees the statements that cursors are given, and the driver's ``in_transaction``. See `Session`.

    The driver begins a transaction before a change by itself, unless the connection is in autocommit mode.
    """

    def __init__(self, connection: Any) -> None:
        # No reference cycle, as the connection does not know this object.
        self._connection = connection
        self.only_reads = True
        self.is_changed = False
        # Whether a transaction was open before the last statement.
        self._before = False

    def sending(self, sql: str, cursor: object) -> None:
        text = sql.encode(errors="replace")
        self._before = self.may_be_open
        if not only_reads(text):
            self.only_reads = False
            self.is_changed = self.is_changed or may_change_session(text, postgresql=True)

    @property
    def may_be_open(self) -> bool:
        return bool(self._connection.in_transaction)

    @property
    def commits_itself(self) -> bool:
        return not self._before and not self.may_be_open

    def effect(self, sql: str) -> Effect:
        effect, after = _effect(sql), self.may_be_open
        if effect in (Effect.COMMITTED, Effect.ROLLED_BACK, Effect.UNKNOWN) or after:
            return effect
        if self._before:
            # RELEASE of the outermost savepoint commits, and so does executescript before its statements.
            return Effect.COMMITTED if effect is Effect.NOTHING else Effect.UNKNOWN
        return Effect.CHANGED_AND_COMMITTED if effect is Effect.CHANGED else effect

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        """See `Session`. Some failures, and interruptions of changes, roll back the whole transaction."""
        effect, after = _effect(sql), self.may_be_open
        if effect is Effect.UNKNOWN:
            return effect
        if self._before and not after:
            return Effect.ROLLED_BACK
        if is_many and effect is Effect.CHANGED:
            return Effect.PERHAPS_CHANGED if after else Effect.UNKNOWN
        return Effect.NOTHING

    def ended_transaction(self) -> None:
        self.only_reads = True

    def begin_rollback(self) -> None:
        """See `Session`. There is nothing to wait for."""


def _effect(sql: str) -> Effect:
    """What a statement does to its transaction if it succeeds, by its text."""
    # Strings end as in PostgreSQL.
    return _EFFECTS.of(in_words(bare(sql.encode(errors="replace"), postgresql=True)))
