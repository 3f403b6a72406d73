"""During development: the latest requests with their SQL, for the operators' page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from threadbridge.sql.statements import Statement
from threadbridge.telemetry.history import LONGEST_TARGET
from threadbridge.telemetry.record import Record
from threadbridge.telemetry.repetitions import LONGEST, repetitions

# Requests that are kept.
KEPT = 50


class RecentRequests:
    """A reader of the telemetry; keeps what it reads last. The loop owns all state."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=KEPT)

    def read(self, records: Sequence[Record]) -> None:
        """Take in what has ended; see `Telemetry.subscribe`."""
        self._records.extend(records)

    def as_json(self) -> list[dict[str, Any]]:
        """The requests, the latest first."""
        return [_request(record) for record in reversed(self._records)]


def _request(record: Record) -> dict[str, Any]:
    statements = record.all_statements or ()
    repeated = repetitions(statements, record.statements == len(statements))
    return {
        "key": record.key,
        "method": record.method,
        "url": record.target[:LONGEST_TARGET],
        "status": record.status,
        "ending": record.ending,
        "ended": record.started_at + record.total,
        "total": round(record.total, 4),
        "database": round(record.database, 4),
        # Some of a large number of statements are not kept.
        "count": record.statements,
        "statements": [_statement(statement) for statement in statements],
        "repeated": [
            {"sql": each.text, "times": each.times, "seconds": round(each.seconds, 4), "n_plus_one": each.is_n_plus_one}
            for each in repeated
        ],
    }


def _statement(statement: Statement) -> dict[str, Any]:
    return {
        "sql": statement.sql[:LONGEST],
        "seconds": round(statement.ended - statement.started, 4) if statement.ended else None,
        "rows": statement.rows if statement.rows >= 0 else None,
        "error": statement.error,
    }
