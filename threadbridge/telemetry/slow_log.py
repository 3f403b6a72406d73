"""The slow log: requests that took long, with their SQL statements."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from threadbridge.sql.mask import masked
from threadbridge.sql.statements import Statement
from threadbridge.telemetry.access_log import escaped, fields
from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge.slow")

# Characters of a statement that are shown.
LONGEST = 2000


class SlowRequest:
    """The message of a log record about a slow request; as text it has a line for each statement. Any thread."""

    def __init__(self, record: Record, shows_values: bool) -> None:
        self.record = record
        self._statements = record.slow_statements or ()
        self._shows_values = shows_values

    def __str__(self) -> str:
        record = self.record
        lines = [
            f"slow request {record.id}: {escaped(f'{record.method} {record.target}')} from {record.client or 'unix:'} "
            f"in {record.lane}: {record.status} {record.ending}, waited {1000 * record.wait:.1f} ms, "
            f"ran {1000 * record.run:.1f} ms, {1000 * record.database:.1f} ms of them in the database, "
            f"{record.statements} statements{_prediction(record)}"
        ]
        left_out = record.statements - len(self._statements)
        if left_out:
            lines.append(f"the first {left_out} statements are not kept")
        for statement in self._statements:
            took = f"{1000 * (statement.ended - statement.started):.1f} ms" if statement.ended else "still running"
            rows = "" if statement.rows < 0 else f", {statement.rows} rows"
            error = f", {statement.error}" if statement.error else ""
            lines.append(f"{took}{rows}{error}: {self._text(statement)}")
        return "\n".join(lines)

    def fields(self) -> dict[str, object]:
        """The fields of the access log, and the statements; the ``ms`` of one that still runs is None."""
        return {
            **fields(self.record),
            "statement_count": self.record.statements,
            "statements": [
                {
                    "sql": self._text(statement),
                    "ms": round(1000 * (statement.ended - statement.started), 1) if statement.ended else None,
                    "rows": statement.rows if statement.rows >= 0 else None,
                    "error": statement.error or None,
                    "connection_id": statement.connection_id,
                }
                for statement in self._statements
            ],
        }

    def _text(self, statement: Statement) -> str:
        sql = statement.sql[: 2 * LONGEST] if self._shows_values else masked(statement.sql[: 2 * LONGEST])
        sql = " ".join("".join(character if character.isprintable() else " " for character in sql).split())
        return sql if len(sql) <= LONGEST else f"{sql[:LONGEST]}..."


def _prediction(record: Record) -> str:
    if not record.cost_class:
        return ""
    # What an unknown one is expected to take says nothing.
    expected = "" if record.cost_class == "unknown" else f", expected to run {1000 * record.expected:.1f} ms"
    return f", class {record.cost_class}{expected}{', outgrown' if record.outgrown else ''}"


def write(shows_values: bool, records: Sequence[Record]) -> None:
    """Log the slow ones of these requests, with the values in their statements or without, at the level WARNING."""
    for record in records:
        if record.slow_statements is not None:
            logger.warning(SlowRequest(record, shows_values))
