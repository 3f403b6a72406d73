"""The SQL statements of a request, for the slow log, the metrics and the operators' pages."""

from __future__ import annotations

import time

from threadbridge.sql.effects import only_reads

# The outcomes, see `Statements.outcome`, after which a request may be repeated.
UNCHANGED = frozenset({"none", "rolled back"})

# How many of a request's statements are recorded: the latest. A request may execute thousands.
MAX_LATEST = 50
# Characters of a statement's text that are recorded. It may contain megabytes of data.
MAX_TEXT = 10_000


def as_field(outcome: str) -> str:
    """A `Statements.outcome` as one word, for the logs."""
    return outcome.replace(" ", "-")


class Statement:
    """One statement. The worker writes it, any thread reads it.

    :param sql: the text that the application executed, without its parameters' values; the first `MAX_TEXT` characters.
    :param connection_id: the connection's number in the database's process list; None if that is unknown.
    :param started: when it started, by `time.monotonic`.
    :param ended: when it ended, by the same clock; 0.0 while it runs.
    :param rows: how many rows it found or changed, by the driver's count; -1 if that is unknown.
    :param error: the name of the exception if it failed, else "".
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
    """The statements of a request: how many, how many seconds they took in all, and the latest.

    The worker writes it, any thread reads it, and may copy ``latest`` at any time: each `list` operation is atomic.

    `threadbridge.sql.transaction.Transaction` maintains the attributes about changes to the data:

    :param open: the number of transactions in which the request has, or may have, changed data, and which are neither
        committed nor rolled back.
    :param has_committed: whether it has committed changes.
    :param has_rolled_back: whether some of its changes were rolled back.
    :param is_committing: whether a commit was sent to the database that has not yet answered it.
    :param is_in_doubt: whether the fate of some of its changes will never be known.
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
        # Not a deque, which is ten times as large; most requests have few statements.
        self.latest: list[Statement] = []

    def begin(self, sql: str, connection_id: int | None) -> Statement:
        """Record that a statement is about to be sent. Worker side."""
        statement = Statement(sql[:MAX_TEXT], connection_id, time.monotonic())
        self.count += 1
        if len(self.latest) == MAX_LATEST:
            del self.latest[0]
        self.latest.append(statement)
        return statement

    def end(self, statement: Statement, *, rows: int = -1, error: str = "") -> None:
        """Record that the database has answered. Worker side."""
        statement.rows, statement.error = rows, error
        statement.ended = time.monotonic()
        self.seconds += statement.ended - statement.started

    @property
    def outcome(self) -> str:
        """What became of the request's changes to the data, as far as is known now.

        ``none``: there were none. ``open``: not committed yet, or still being made. ``committed``, ``partly committed``
        (others are open or were rolled back), ``rolled back``. ``unknown``: a commit, or a change with autocommit, was
        sent and the answer is missing, or the text of a statement does not show what it does.
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
