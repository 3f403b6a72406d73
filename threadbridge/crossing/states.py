"""The states of an exchange, and the legal moves between them."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """The state of an exchange; the last six are endings, counted and logged under these names."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    RESPONDING = "responding"
    DONE = "done"
    SHED = "shed"
    EXPIRED = "expired"
    ABANDONED = "abandoned"
    FAILED = "failed"
    REFUSED = "refused"

    # Enum's own hashes the name, so that a state and the equal str would have different hashes; and it is slower.
    __hash__ = str.__hash__


ENDINGS = frozenset({State.DONE, State.SHED, State.EXPIRED, State.ABANDONED, State.FAILED, State.REFUSED})

# Every legal move. `Exchange.move` refuses any other: the other side was faster.
MOVES: dict[State, frozenset[State]] = {
    State.RECEIVING: frozenset({State.QUEUED, State.SHED, State.FAILED, State.ABANDONED, State.REFUSED}),
    State.QUEUED: frozenset({State.RUNNING, State.SHED, State.EXPIRED, State.ABANDONED}),
    State.RUNNING: frozenset({State.RESPONDING, State.FAILED, State.EXPIRED, State.ABANDONED}),
    State.RESPONDING: frozenset({State.DONE, State.FAILED, State.ABANDONED, State.REFUSED}),
    **{ending: frozenset() for ending in ENDINGS},
}
