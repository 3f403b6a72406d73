"""What requests have changed in the open transaction of one connection, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum

from threadbridge.sql.effects import first_word, is_several
from threadbridge.sql.statements import Statements


class Effect(Enum):
    """What a statement has done to the data, or to the transaction in which it ran, as far as that is certain."""

    NOTHING = "nothing"
    # To be committed or rolled back yet.
    CHANGED = "changed"
    PERHAPS_CHANGED = "perhaps changed"
    # What was open.
    COMMITTED = "committed"
    # What was open, if anything was.
    PERHAPS_COMMITTED = "perhaps committed"
    # Both what was open and what the statement has changed itself.
    CHANGED_AND_COMMITTED = "changed and committed"
    ROLLED_BACK = "rolled back"
    # Some of what was open may be gone, or all.
    PARTLY_ROLLED_BACK = "partly rolled back"
    # It may have changed something, and committed or rolled back that and what was open.
    UNKNOWN = "unknown"


class Effects:
    """What the statements of one kind of database do, by their text, if they succeed.

    :param by_word: for each effect the first words of statements that have it.
    :param exceptions: patterns where more than the first word counts; the first that matches decides.
    :param otherwise: what all other statements do.
    """

    def __init__(
        self, by_word: Mapping[Effect, bytes], exceptions: Sequence[tuple[bytes, Effect]], otherwise: Effect
    ) -> None:
        self._by_word = {word: effect for effect, words in by_word.items() for word in words.split()}
        self._exceptions = [(re.compile(pattern).match, effect) for pattern, effect in exceptions]
        self._otherwise = otherwise

    def of(self, words: bytes) -> Effect:
        """What a statement does.

        :param words: see `threadbridge.sql.effects.in_words`.
        """
        if is_several(words):
            return Effect.UNKNOWN
        for matches, effect in self._exceptions:
            if matches(words) is not None:
                return effect
        return self._by_word.get(first_word(words), self._otherwise)


class Transaction:
    """The open transaction of one connection. Requests that share the connection share its transaction. Worker side."""

    def __init__(self) -> None:
        # For each request whose changes are open: whether it certainly has some.
        self._changes: dict[Statements, bool] = {}

    @property
    def has_changes(self) -> bool:
        """Whether a request has changed something, or may have, that is neither committed nor rolled back yet."""
        return bool(self._changes)

    def note(self, effect: Effect, statements: Statements | None) -> None:
        """A statement had this effect.

        :param statements: those of the request that has sent it, if a request has.
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

    def committing(self) -> None:
        """A commit is about to be sent; `note` tells what came of it."""
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
