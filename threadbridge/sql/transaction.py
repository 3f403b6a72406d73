"""Which requests have changed data in a connection's open transaction, and what becomes of their changes."""

from __future__ import annotations

import re
import threading
from enum import Enum

from threadbridge.common import forks
from threadbridge.sql.effects import find_more, first_word
from threadbridge.sql.statements import Statements


class Effect(Enum):
    """What a statement did to the data or to its transaction, as far as is certain."""

    NOTHING = "nothing"
    # The changes are neither committed nor rolled back yet.
    CHANGED = "changed"
    PERHAPS_CHANGED = "perhaps changed"
    # The open changes were committed.
    COMMITTED = "committed"
    PERHAPS_COMMITTED = "perhaps committed"
    # Both the open changes and the statement's own were committed.
    CHANGED_AND_COMMITTED = "changed and committed"
    ROLLED_BACK = "rolled back"
    # Some or all of the open changes may have been rolled back.
    PARTLY_ROLLED_BACK = "partly rolled back"
    # It may have changed data, and committed or rolled back that and the open changes.
    UNKNOWN = "unknown"


class Effects:
    """What statements do if they succeed, by the first of the ``exceptions`` that matches, else by their first word."""

    def __init__(self, by_word: dict[Effect, bytes], exceptions: list[tuple[bytes, Effect]], otherwise: Effect) -> None:
        self._by_word = {word: effect for effect, words in by_word.items() for word in words.split()}
        self._exceptions = [(re.compile(pattern).match, effect) for pattern, effect in exceptions]
        self._otherwise = otherwise

    def of(self, words: bytes) -> Effect:
        """The effect of a statement, given as `threadbridge.sql.effects.in_words` returns it."""
        if find_more(words) is not None:
            return Effect.UNKNOWN
        for matches, effect in self._exceptions:
            if matches(words) is not None:
                return effect
        return self._by_word.get(first_word(words), self._otherwise)


# Guards the transactions of all connections, as a request may have changes in several of them, each of which a worker
# that shares the connection may commit. Re-entrant: a connection that is collected under it notes a rollback.
_lock = threading.RLock()


def _renew_lock() -> None:
    """Do without the lock of the parent, which one of its threads may hold, in a forked process."""
    global _lock
    _lock = threading.RLock()


forks.calls_first(_renew_lock)


class Transaction:
    """The open transaction of one connection; requests that share the connection share it. Worker side.

    A lock guards it, and of `Statements` what this maintains.
    """

    def __init__(self) -> None:
        # For each request that may have changes that are neither committed nor rolled back, whether it certainly has.
        self.open: dict[Statements, bool] = {}

    def record(self, effect: Effect, statements: Statements | None) -> None:
        """Record the effect of a statement that a request sent; ``statements`` is None if no request did."""
        with _lock:
            if effect in (Effect.CHANGED, Effect.PERHAPS_CHANGED):
                if statements is not None:
                    if statements not in self.open:
                        statements.open += 1
                    self.open[statements] = effect is Effect.CHANGED or self.open.get(statements, False)
            elif effect is Effect.PARTLY_ROLLED_BACK:
                self.open = dict.fromkeys(self.open, False)
            elif effect is not Effect.NOTHING:
                changes, self.open = self.open, {}
                for each, is_certain in changes.items():
                    if effect is Effect.ROLLED_BACK:
                        each.has_rolled_back = True
                    elif is_certain and effect in (Effect.COMMITTED, Effect.CHANGED_AND_COMMITTED):
                        each.has_committed = True
                    else:
                        each.is_in_doubt = True
                    each.open -= 1
                    each.is_committing = False
                if statements is not None:
                    statements.has_committed |= effect is Effect.CHANGED_AND_COMMITTED
                    statements.is_in_doubt |= effect is Effect.UNKNOWN

    def begin_commit(self) -> None:
        """Record that a commit is about to be sent; `record` records its effect."""
        with _lock:
            for each in self.open:
                each.is_committing = True
