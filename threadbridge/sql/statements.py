"""What a request asks of the database: for the slow log, the metrics and the people who watch."""

from __future__ import annotations

import time

from threadbridge.sql.effects import only_reads

# The outcomes, see `Statements.outcome`, after which a request may be repeated.
UNCHANGED = frozenset({"none", "rolled back"})

# A request may run thousands; of those the latest are worth a look.
KEPT = 50
# Characters of a statement's text: one may bring megabytes of data with it.
KEPT_TEXT = 10_000


def as_field(outcome: str) -> str:
    """What `Statements.outcome` says as one word, as the logs have it."""
    return outcome.replace(" ", "-")


class Statement:
    """One statement. The worker writes it, anybody reads it.

    :param sql: its text as the application gave it, without its parameters' values; its beginning if it is very long.
    :param connection_id: the number of the connection in the database's process list, or None where that is unknown.
    :param started: by `time.monotonic`.
    :param ended: by the same clock; 0.0 while it runs.
    :param rows: how many rows it found or changed, as the driver says: -1 when that is unknown.
    :param error: the exception's name when it failed, or "".
    """

    __slots__ = ("connection_id", "ended", "error", "rows", "sql", "started")

    def __init__(self, sql: str, connection_id: int | None, started: float) -> None:
        self.sql = sql
        self.connection_id = connection_id
        self.started = started
        self.ended = 0.0
        self.rows = -1
        self.error = ""


class Statements:
    """All statements of a request: how many, how long they took together, and the latest of them.

    The worker writes; anybody reads, and may copy ``latest`` at any time, one `list` operation being atomic.

    The attributes about its changes to the data are kept by `threadbridge.sql.transaction.Transaction`:

    :param open: in how many transactions it has changed data, or may have, and that is neither committed nor rolled
        back yet.
    :param has_committed: whether it has committed changes.
    :param has_rolled_back: whether changes were rolled back.
    :param is_committing: whether a commit was sent to the database whose answer has not come yet.
    :param is_in_doubt: whether it will never be known what has become of some of its changes.
    """

    __slots__ = (
        *("count", "has_committed", "has_rolled_back", "is_committing", "is_in_doubt", "latest", "open", "seconds"),
    )

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.open = 0
        self.has_committed = False
        self.has_rolled_back = False
        self.is_committing = False
        self.is_in_doubt = False
        # A deque would be ten times as large, for a request that has few statements or none.
        self.latest: list[Statement] = []

    def begin(self, sql: str, connection_id: int | None) -> Statement:
        """A statement is given to the database. Worker side."""
        statement = Statement(sql[:KEPT_TEXT], connection_id, time.monotonic())
        self.count += 1
        if len(self.latest) == KEPT:
            del self.latest[0]
        self.latest.append(statement)
        return statement

    def end(self, statement: Statement, *, rows: int = -1, error: str = "") -> None:
        """The database has answered. Worker side."""
        statement.rows, statement.error = rows, error
        statement.ended = time.monotonic()
        self.seconds += statement.ended - statement.started

    @property
    def outcome(self) -> str:
        """What has become of the request's changes to the data, as far as is known now. Either side.

        ``none``: there were none. ``open``: not committed yet, perhaps still being made. ``committed``, ``partly
        committed`` (others are open or were rolled back), ``rolled back``. ``unknown``: the database was told to
        commit, or to change data with autocommit, and its answer is missing; or the text of a statement does not say
        what it does.
        """
        latest = self.latest[-1] if self.latest else None
        is_changing = latest is not None and not latest.ended and not only_reads(latest.sql.encode(errors="replace"))
        if self.is_in_doubt or self.is_committing:
            return "unknown"
        if self.has_committed:
            return "partly committed" if self.open or self.has_rolled_back or is_changing else "committed"
        if self.open or is_changing:
            return "open"
        return "rolled back" if self.has_rolled_back else "none"
