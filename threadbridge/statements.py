"""What a request asks of the database: for the slow log, the metrics and the people who watch."""

from __future__ import annotations

import time

# A request may run thousands; of those the latest are worth a look.
KEPT = 50
# Characters of a statement's text: one may bring megabytes of data with it.
KEPT_TEXT = 10_000


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
    """

    __slots__ = ("count", "latest", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
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
