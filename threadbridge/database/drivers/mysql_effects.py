"""What a statement does to its transaction in MySQL and MariaDB, by its text."""

from __future__ import annotations

import re

from threadbridge.sql.effects import bare, in_words, statement_in
from threadbridge.sql.transaction import Effect, Effects

# Procedures, compound statements, prepared statements and XA are not listed, as they may do anything.
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
_BEGINS = re.compile(rb"begin\b|start transaction\b|(?:commit|rollback)\b.*\band chain\b").match


class StatementEffect:
    """What a statement does if it succeeds.

    :param effect: its effect on the data and the transaction when autocommit is off.
    :param begins: whether it leaves a transaction open even when autocommit is on.
    """

    def __init__(self, sql: str, escapes: bool) -> None:
        text = statement_in(bare(sql.encode(errors="replace"), escapes=escapes))
        words = in_words(text)
        self.effect = _EFFECTS.of(words)
        self.begins = _BEGINS(words) is not None
