"""Reports what became of a request's changes to the data if its thread came back after the request had ended."""

from __future__ import annotations

import logging

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import State
from threadbridge.sql.statements import as_field
from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge")


def report_return(exchange: Exchange, record: Record) -> None:
    """Complete the record of an exchange whose thread has come back; log the outcome if it matters."""
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


def report_unreturned(exchange: Exchange, answer: str) -> None:
    """Log what is known of an exchange whose thread has not come back when the process ends."""
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
