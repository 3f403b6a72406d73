"""Which requests have changed data in a connection's open transaction, and what becomes of their changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum

from threadbridge.sql.effects import first_word, is_several
from threadbridge.sql.statements import Statements


class Effect(Enum):
    """What a statement did to the data or to its transaction, as far as is certain."""

    NOTHING = "nothing"
    # The changes are neither committed nor rolled back yet.
    CHANGED = "changed"
    PERHAPS_CHANGED = "perhaps changed"
    # The open changes were committed.
    COMMITTED = "committed"
    # The open changes may have been committed.
    PERHAPS_COMMITTED = "perhaps committed"
    # Both the open changes and the statement's own were committed.
    CHANGED_AND_COMMITTED = "changed and committed"
    ROLLED_BACK = "rolled back"
    # Some of the open changes may have been rolled back, or all.
    PARTLY_ROLLED_BACK = "partly rolled back"
    # It may have changed data, and committed or rolled back that and the open changes.
    UNKNOWN = "unknown"


class Effects:
    """What the statements of one kind of database do if they succeed, by their text.

    :param by_word: for each effect, the first words of the statements that have it.
    :param exceptions: patterns that come before ``by_word``; the first that matches decides.
    :param otherwise: the effect of all other statements.
    """

    def __init__(
        self, by_word: Mapping[Effect, bytes], exceptions: Sequence[tuple[bytes, Effect]], otherwise: Effect
    ) -> None:
        self._by_word = {word: effect for effect, words in by_word.items() for word in words.split()}
        self._exceptions = [(re.compile(pattern).match, effect) for pattern, effect in exceptions]
        self._otherwise = otherwise

    def of(self, words: bytes) -> Effect:
        """The effect of a statement.

        :param words: its text; see `threadbridge.sql.effects.in_words`.
        """
        if is_several(words):
            return Effect.UNKNOWN
        for matches, effect in self._exceptions:
            if matches(words) is not None:
                return effect
        return self._by_word.get(first_word(words), self._otherwise)


class Transaction:
    """The open transaction of one connection; requests that share the connection share it. Worker side."""

    def __init__(self) -> None:
        # For each request that may have open changes, whether it is certain that it has.
        self._changes: dict[Statements, bool] = {}

    @property
    def has_changes(self) -> bool:
        """Whether a request may have changes that are neither committed nor rolled back."""
        return bool(self._changes)

    def record(self, effect: Effect, statements: Statements | None) -> None:
        """Record a statement's effect.

        :param statements: those of the request that sent it; None if no request did.
        """
        if effect in (Effect.CHANGED, Effect.PERHAPS_CHANGED):
            if statements is not None:
                self._open(statements, effect is Effect.CHANGED)
        elif effect is Effect.PARTLY_ROLLED_BACK:
            self._changes = dict.fromkeys(self._changes, False)
        elif effect is Effect.ROLLED_BACK:
            for each in self._close():
                each.has_rolled_back = True
        elif effect in (Effect.COMMITTED, Effect.CHANGED_AND_COMMITTED):
            for each, is_certain in self._close().items():
                if is_certain:
                    each.has_committed = True
                else:
                    each.is_in_doubt = True
            if effect is Effect.CHANGED_AND_COMMITTED and statements is not None:
                statements.has_committed = True
        elif effect is not Effect.NOTHING:
            for each in self._close():
                each.is_in_doubt = True
            if effect is Effect.UNKNOWN and statements is not None:
                statements.is_in_doubt = True

    def begin_commit(self) -> None:
        """Record that a commit is about to be sent; `record` records its effect."""
        for each in self._changes:
            each.is_committing = True

    def _open(self, statements: Statements, is_certain: bool) -> None:
        if statements not in self._changes:
            statements.open += 1
        self._changes[statements] = is_certain or self._changes.get(statements, False)

    def _close(self) -> dict[Statements, bool]:
        changes, self._changes = self._changes, {}
        for each in changes:
            each.open -= 1
            each.is_committing = False
        return changes
