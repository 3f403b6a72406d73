"""Tells what became of a request's changes to the data if that was decided only after the request had ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import State
from threadbridge.sql.statements import as_field
from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge")


class LateChanges:
    """The requests that have ended while their threads went on, for as long as these do.

    A thread that comes back brings the final outcome: it goes into the request's record, for the operators' page, and
    into the log if there is something to tell.
    """

    def __init__(self) -> None:
        self._records: dict[Exchange, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def add(self, exchange: Exchange, record: Record) -> None:
        """The exchange has ended, and its thread may still change data."""
        self._records[exchange] = record

    def look(self) -> None:
        """Tell of those whose threads have come back."""
        for exchange in [exchange for exchange in self._records if exchange.worker_is_done]:
            _tell(exchange, self._records.pop(exchange))

    def process_ends(self, unanswered: Iterable[Exchange]) -> None:
        """Tell what is known of all others too, and of these requests, which have not ended."""
        self.look()
        for exchange in self._records:
            _tell_as_it_is(exchange, f"ended with status {exchange.status}")
        for exchange in unanswered:
            _tell_as_it_is(exchange, "had no answer yet")


def _tell(exchange: Exchange, record: Record) -> None:
    before, record.changes = record.changes, exchange.running.statements.outcome
    # Of an answer by the application there is nothing more to say if it was given after all was decided.
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


def _tell_as_it_is(exchange: Exchange, answer: str) -> None:
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
