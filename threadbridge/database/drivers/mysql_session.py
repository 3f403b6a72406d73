"""The session of one MySQL connection: what its statements do to transactions, and whether it was changed."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable
from typing import Any

from threadbridge.database.driver import Tag
from threadbridge.database.drivers.mysql_drivers import MySQLDriver
from threadbridge.database.drivers.mysql_errors import number_of
from threadbridge.sql.effects import bare, in_words, may_change_session, only_reads
from threadbridge.sql.transaction import Effect, Effects

# Methods of the drivers' connections that change the session, or send statements in other ways than the usual one.
_CHANGING = (
    "change_user",
    "cmd_change_user",
    "cmd_init_db",
    "cmd_query_iter",
    "cmd_reset_connection",
    "cmd_stmt_prepare",
    "reset",
    "select_db",
    "set_character_set",
    "set_server_option",
)

# With autocommit, the statement may have been committed nevertheless.
ER_ERROR_DURING_COMMIT = 1180
# InnoDB has rolled back the whole transaction.
ER_LOCK_DEADLOCK = 1213
# It may have, depending on the server's settings and version: ER_LOCK_WAIT_TIMEOUT, ER_LOCK_TABLE_FULL, ER_CHECKREAD.
MAYBE_ROLLED_BACK = frozenset({1205, 1206, 1020})

# What statements do to their transaction when autocommit is off. Procedures, compound statements, prepared statements
# and XA are not listed, as they may do anything.
_EFFECTS = Effects(
    {
        Effect.NOTHING: b"select show explain describe desc values table help use kill handler savepoint release "
        b"prepare deallocate checksum get",
        Effect.CHANGED: b"insert update delete replace load",
        # Functions cannot commit.
        Effect.PERHAPS_CHANGED: b"do analyze",
        Effect.COMMITTED: b"commit lock",
        Effect.ROLLED_BACK: b"rollback",
        Effect.CHANGED_AND_COMMITTED: b"create alter drop truncate rename grant revoke",
        Effect.PERHAPS_COMMITTED: b"unlock flush optimize repair check cache reset install uninstall",
    },
    [
        (rb"begin(?: work)?$|start transaction\b", Effect.COMMITTED),
        (rb"rollback (?:.* )?to\b", Effect.PARTLY_ROLLED_BACK),
        (rb"(?:create(?: or replace)?|drop) temporary tables?\b", Effect.NOTHING),
        # The driver knows whether it switched autocommit on, which commits.
        (rb"set .*\b(?:autocommit|password|default role)\b", Effect.PERHAPS_COMMITTED),
        (rb"set .*\(", Effect.PERHAPS_CHANGED),
        (rb"set ", Effect.NOTHING),
        (rb"(?:explain|desc|describe) .*\banalyze\b", Effect.PERHAPS_CHANGED),
        (rb"analyze (?:\w+ )?tables?\b|load index\b|lock instance\b", Effect.PERHAPS_COMMITTED),
        (rb"with .*(?:(?<!for )\bupdate\b|\bdelete\b)", Effect.PERHAPS_CHANGED),
        (rb"with ", Effect.NOTHING),
    ],
    Effect.UNKNOWN,
)
# Statements that leave a transaction open even when autocommit is on.
_BEGINS = re.compile(rb"begin\b|start transaction\b|(?:commit|rollback)\b.*\band chain\b").match


class MySQLSession:
    """Sees all statements on a connection as they are sent, with their parameters filled in. See `Session`.

    With a driver that has no method to replace for this, it sees the texts that cursors are given.
    """

    def __init__(
        self,
        connection: Any,
        driver: MySQLDriver,
        tag: Tag | None,
        without_limit: tuple[bytes, bytes] | None,
    ) -> None:
        # No reference cycle: a connection that is forgotten is closed at once.
        self._connection = weakref.ref(connection)
        self._get_autocommit = driver.autocommits
        self._send_rollback = driver.send_rollback
        self._tag = tag
        # Whether rows of a cursor arrive while they are fetched; the first word of a query, and its replacement that
        # lifts the time limit for these cursors.
        self._unbuffers = driver.is_unbuffered
        self._without_limit = without_limit
        self._is_unbuffered = False
        self.only_reads = True
        # Whether anything was sent since the last commit or rollback.
        self._was_used = False
        self._is_changed = False
        self._made_with_autocommit = driver.autocommits(connection)
        # Autocommit when the last effect was determined; whether a transaction was begun in spite of it.
        self._autocommits = bool(self._made_with_autocommit)
        self._has_begun = False
        # False if the server's sql_mode has NO_BACKSLASH_ESCAPES.
        self._escapes = driver.escapes(connection)
        kind = type(connection)
        self._is_hooked = len(driver.hooks) > 0
        self._send: Callable[..., Any] | None = getattr(kind, driver.hooks[0]) if self._is_hooked else None
        for name in driver.hooks:
            # The others may be names of the same method.
            if getattr(kind, name, None) is self._send:
                setattr(connection, name, self.query)
        for name in _CHANGING:
            method = getattr(kind, name, None)
            if method is not None:
                setattr(connection, name, functools.partial(self._change, method))

    def _observe(self, sql: bytes) -> None:
        self._was_used = True
        if not only_reads(sql):
            self.only_reads = False
            if not self._is_changed:
                self._is_changed = may_change_session(sql, escapes=self._escapes)

    def query(self, sql: str | bytes | bytearray, *args: Any, **kwargs: Any) -> Any:
        """Replaces the driver's method."""
        if isinstance(sql, bytes):
            self._observe(sql)
        else:
            self._observe(sql.encode(errors="replace") if isinstance(sql, str) else bytes(sql))
        if self._is_unbuffered and self._without_limit is not None:
            self._is_unbuffered = False
            word, replacement = self._without_limit
            text = (sql.encode() if isinstance(sql, str) else bytes(sql)).lstrip()
            size = len(word)
            if text[:size].lower() == word:
                sql = replacement + text[size:]
        if self._tag is not None:
            sql = self._tag(sql)
        assert self._send is not None
        return self._send(self._connection(), sql, *args, **kwargs)

    def _change(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._was_used = self._is_changed = True
        self.only_reads = False
        return method(self._connection(), *args, **kwargs)

    def sending(self, sql: str, cursor: object) -> None:
        """See `Session`. `query` sees the statement itself, and also those that the application sends directly."""
        if self._is_hooked:
            self._is_unbuffered = self._without_limit is not None and self._unbuffers(cursor)
        else:
            self._observe(sql.encode(errors="replace"))

    # What statements do to the transaction.

    def _words(self, sql: str) -> bytes:
        return in_words(bare(sql.encode(errors="replace"), escapes=self._escapes))

    def effect(self, sql: str) -> Effect:
        words = self._words(sql)
        effect = _EFFECTS.of(words)
        was_switched_on = self._read_autocommit()
        if effect in (Effect.CHANGED, Effect.PERHAPS_CHANGED):
            if self.commits_itself:
                effect = Effect.CHANGED_AND_COMMITTED if effect is Effect.CHANGED else Effect.UNKNOWN
        elif effect is Effect.PERHAPS_COMMITTED:
            effect = self._perhaps_committed
        elif effect not in (Effect.NOTHING, Effect.PARTLY_ROLLED_BACK):
            self._has_begun = _BEGINS(words) is not None
        if was_switched_on and effect not in (Effect.CHANGED_AND_COMMITTED, Effect.UNKNOWN):
            # Switching it on commits.
            return Effect.COMMITTED
        return effect

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        effect = _EFFECTS.of(self._words(sql))
        self._read_autocommit()
        number = number_of(error)
        if effect in (Effect.UNKNOWN, Effect.CHANGED_AND_COMMITTED):
            return Effect.UNKNOWN
        is_commit = effect in (Effect.COMMITTED, Effect.PERHAPS_COMMITTED)
        changes = effect in (Effect.CHANGED, Effect.PERHAPS_CHANGED)
        # Of several statements, some may have succeeded.
        if changes and self.commits_itself and (is_many or is_lost or number == ER_ERROR_DURING_COMMIT):
            return Effect.UNKNOWN
        if number == ER_LOCK_DEADLOCK and (sql.upper() == "COMMIT" or not is_commit):
            # With autocommit, the next statement commits itself.
            self._has_begun = False
            return Effect.ROLLED_BACK
        if is_commit:
            return self._perhaps_committed
        if is_lost:
            return Effect.ROLLED_BACK
        if number in MAYBE_ROLLED_BACK and ((changes and is_many) or (self._autocommits and self._has_begun)):
            return Effect.UNKNOWN
        if number in MAYBE_ROLLED_BACK or effect is Effect.ROLLED_BACK:
            return Effect.PARTLY_ROLLED_BACK
        return Effect.PERHAPS_CHANGED if changes and is_many else Effect.NOTHING

    @property
    def commits_itself(self) -> bool:
        return self._autocommits and not self._has_begun

    @property
    def _perhaps_committed(self) -> Effect:
        # With autocommit, it is then not known either whether a transaction is still open.
        return Effect.UNKNOWN if self._autocommits and self._has_begun else Effect.PERHAPS_COMMITTED

    def _read_autocommit(self) -> bool:
        """Read the current setting; returns whether it was switched on, which ends a transaction."""
        connection: Any = self._connection()
        before, self._autocommits = self._autocommits, bool(self._get_autocommit(connection))
        is_switched_on = self._autocommits and not before
        self._has_begun = self._has_begun and not is_switched_on
        return is_switched_on

    def ended_transaction(self) -> None:
        self.only_reads = True
        self._was_used = self._has_begun = False

    @property
    def may_be_open(self) -> bool:
        if not self._is_hooked:
            # What the application sends directly is not seen.
            return True
        connection: Any = self._connection()
        return self._was_used and not (self.only_reads and self._get_autocommit(connection))

    @property
    def is_changed(self) -> bool:
        connection: Any = self._connection()
        return self._is_changed or self._get_autocommit(connection) != self._made_with_autocommit

    def begin_rollback(self) -> Callable[[], object] | None:
        """See `Session`. It is sent only after plain queries, when it releases a snapshot but no locks."""
        only_reads, self.only_reads = self.only_reads, True
        self._was_used = False
        if not only_reads or self._send_rollback is None:
            return None
        return self._send_rollback(self._connection())
