"""The SQL statements of a request, for the slow log, the metrics and the operators' pages."""

from __future__ import annotations

import time
from typing import Any

from threadbridge.sql.effects import only_reads

# The values of `Statements.outcome` after which a request may be repeated.
UNCHANGED = frozenset({"none", "rolled back"})

# How many of a request's latest statements are kept. A request may execute thousands.
MAX_LATEST = 50
# How many characters of a statement's text are kept. It may contain megabytes of data.
MAX_TEXT = 10_000


def as_field(outcome: str) -> str:
    """A `Statements.outcome` as one word, for the logs."""
    return outcome.replace(" ", "-")


def text_of(sql: object, cursor: object) -> str:
    """The text of what a cursor is asked to execute: a string, bytes, or an object of the driver's."""
    if isinstance(sql, str):
        return sql
    if isinstance(sql, (bytes, bytearray)):
        return sql[:MAX_TEXT].decode(errors="replace")
    # psycopg's composed statements.
    as_string: Any = getattr(sql, "as_string", None)
    return str(sql) if as_string is None else str(as_string(cursor))


class Statement:
    """One statement. The worker writes it, any thread reads it. Times are by `time.monotonic`."""

    def __init__(self, sql: str, connection_id: int | None, started: float) -> None:
        # The first `MAX_TEXT` characters, without its parameters' values.
        self.sql = sql
        # The connection's number in the database's process list; None if unknown.
        self.connection_id = connection_id
        self.started = started
        # 0.0 while it runs.
        self.ended = 0.0
        # How many rows it found or changed, by the driver's count; -1 if unknown.
        self.rows = -1
        # The name of the exception if it failed.
        self.error = ""


class Statements:
    """The statements of a request: their number, their total time in seconds, and the latest of them.

    The worker writes it. Any thread reads it, and may copy ``latest`` at any time, as `list` operations are atomic.
    `Transaction` maintains the attributes about changes to the data.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        # The number of open transactions in which the request has, or may have, changed data.
        self.open = 0
        # Of its changes to data, whether some were committed, some rolled back, a commit was sent that the database has
        # not yet answered, and whether the fate of some will never be known.
        self.has_committed = self.has_rolled_back = self.is_committing = self.is_in_doubt = False
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

    def seconds_until(self, now: float) -> float:
        """Their total time until ``now``, that of a statement which is still running included."""
        latest = self.latest[-1] if self.latest else None
        return self.seconds if latest is None or latest.ended else self.seconds + max(0.0, now - latest.started)

    @property
    def outcome(self) -> str:
        """What became of the request's changes to the data, as far as is known now.

        ``none``: there were none. ``open``: not committed yet, or still being made. ``committed``, ``partly committed``
        (others are open or were rolled back), ``rolled back``. ``unknown``: the answer to a commit, or to a change with
        autocommit, is missing, or the text of a statement does not show what it does.
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
