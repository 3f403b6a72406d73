"""The states of an exchange and the legal moves between them, decided here and nowhere else."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """Where an exchange is; the last six are endings, each counted and logged under its name."""

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

    # That of `Enum` hashes the name, so that equal texts would have other hashes, and is written in Python.
    __hash__ = str.__hash__


ENDINGS = frozenset({State.DONE, State.SHED, State.EXPIRED, State.ABANDONED, State.FAILED, State.REFUSED})

# Every legal move. What is not here does not happen: `Exchange.move` refuses it, and whoever asked came too late.
MOVES: dict[State, frozenset[State]] = {
    State.RECEIVING: frozenset({State.QUEUED, State.SHED, State.FAILED, State.ABANDONED, State.REFUSED}),
    State.QUEUED: frozenset({State.RUNNING, State.SHED, State.EXPIRED, State.ABANDONED}),
    State.RUNNING: frozenset({State.RESPONDING, State.FAILED, State.EXPIRED, State.ABANDONED}),
    State.RESPONDING: frozenset({State.DONE, State.FAILED, State.ABANDONED, State.REFUSED}),
    **{ending: frozenset() for ending in ENDINGS},
}
