"""Reports what became of a request's changes to the data when that was decided after the request had ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import State
from threadbridge.sql.statements import as_field
from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge")


class LateChanges:
    """The requests that have ended while their threads still run.

    When a thread comes back, the outcome is final: it goes into the request's record, for the operators' page, and into
    the log if it matters.
    """

    def __init__(self) -> None:
        self._records: dict[Exchange, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def add(self, exchange: Exchange, record: Record) -> None:
        """Keep an exchange that has ended while its thread may still change data."""
        self._records[exchange] = record

    def look(self) -> None:
        """Report the exchanges whose threads have come back."""
        for exchange in [exchange for exchange in self._records if exchange.worker_is_done]:
            _report(exchange, self._records.pop(exchange))

    def process_ends(self, unanswered: Iterable[Exchange]) -> None:
        """Report what is known of all others, too, and of these requests, which have not ended."""
        self.look()
        for exchange in self._records:
            _report_at_end(exchange, f"ended with status {exchange.status}")
        for exchange in unanswered:
            _report_at_end(exchange, "had no answer yet")


def _report(exchange: Exchange, record: Record) -> None:
    before, record.changes = record.changes, exchange.running.statements.outcome
    # If the application answered after all was decided, the access log already has the outcome.
    if record.changes == "none" or (exchange.state in (State.DONE, State.FAILED) and record.changes == before):
        return
    logger.warning(
        "request %s: %s %s ended with status %d and changes=%s; its thread has come back since: changes=%s",
        exchange.id,
        exchange.start_line.method,
        exchange.start_line.path,
        exchange.status,
        as_field(before),
        as_field(record.changes),
        extra={"request_id": exchange.id},
    )


def _report_at_end(exchange: Exchange, answer: str) -> None:
    outcome = exchange.running.statements.outcome
    if outcome != "none":
        logger.error(
            "request %s: %s %s %s; its thread had not come back when the process ended: changes=%s (the database rolls "
            "back what is open, unless it has been told to commit meanwhile)",
            exchange.id,
            exchange.start_line.method,
            exchange.start_line.path,
            answer,
            as_field(outcome),
            extra={"request_id": exchange.id},
        )
