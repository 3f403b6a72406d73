"""Watches the clock for a bridge: limits on waiting, deadlines, stuck threads, and delays of the loop itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from threadbridge.common.threads import stacks
from threadbridge.crossing.cancellation import Cancellation
from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.states import State
from threadbridge.sql.statements import as_field
from threadbridge.telemetry.record import Record
from threadbridge.telemetry.totals import Distribution

if TYPE_CHECKING:
    from threadbridge.database.guard import Guard

logger = logging.getLogger("threadbridge")

# Seconds between two looks, and so the precision of all limits: this costs less than a timer for each request.
INTERVAL = 0.25
# Seconds that a worker may take to come back from a request that has ended. Then the request is cancelled if its
# method has prevented that so far; if the worker takes as long again, its thread is stuck.
STUCK_AFTER = 10.0


class Watch:
    """Looks at the requests of a bridge four times a second, as long as there are any.

    :param exchanges: the requests that have not ended; their owner changes this set.
    :param queue_timeout: seconds that a request may wait for a thread before it is answered 503.
    """

    def __init__(
        self,
        exchanges: set[Exchange],
        lanes: Sequence[Lane],
        cancellation: Cancellation,
        guard: Guard | None,
        queue_timeout: float,
    ) -> None:
        self._exchanges = exchanges
        self._lanes = lanes
        self._cancellation = cancellation
        self._guard = guard
        self._queue_timeout = queue_timeout
        # Requests that have ended while a worker runs them, with their records.
        self._left_running: dict[Exchange, Record] = {}
        # Of these, the ones that were cancelled only because they did not come back, with the times of that.
        self._cancelled_late: dict[Exchange, float] = {}
        # Of these, the ones whose threads are stuck.
        self._given_up: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look as soon as an interval has passed."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def await_return(self, exchange: Exchange, record: Record) -> None:
        """Expect the worker of an exchange that has ended to come back, and then complete its record."""
        self._left_running[exchange] = record

    def _awaited(self) -> list[Exchange]:
        """Return the requests whose threads are still expected back, in the order in which they ended."""
        return [exchange for exchange in self._left_running if exchange not in self._given_up]

    def overdue_threads(self, lane: Lane, seconds: float) -> int:
        """Return how many threads of the lane are this many seconds late, and not replaced yet."""
        now = time.monotonic()
        return sum(
            exchange.lane is lane and not exchange.worker_is_done and now >= expected_back(exchange) + seconds
            for exchange in self._awaited()
        )

    def _look(self) -> None:
        self._timer = None
        if self._exchanges or self._left_running:
            # First, so that the watch goes on whatever happens below.
            self.start()
        for lane in self._lanes:
            lane.wake()
        if self._cancellation.threads.retry():
            # A cancellation still waits for a thread.
            self.start()
        now = time.monotonic()
        for exchange in list(self._exchanges):
            if exchange.state is State.QUEUED and now - exchange.queued_at > self._queue_timeout:
                exchange.shed()
            elif exchange.state in (State.QUEUED, State.RUNNING) and now > (exchange.running.deadline or now):
                exchange.expire()
        self._report_returned()
        # In order: the thread that has been stuck longest is replaced first.
        for exchange in self._awaited():
            if now < max(expected_back(exchange), self._cancelled_late.get(exchange, 0.0)) + STUCK_AFTER:
                continue
            if not exchange.running.cancelled and exchange not in self._cancelled_late:
                self._cancel_late(exchange, now)
            else:
                self._give_up(exchange)

    def _report_returned(self) -> None:
        for exchange in [exchange for exchange in self._left_running if exchange.worker_is_done]:
            _report_return(exchange, self._left_running.pop(exchange))
            self._cancelled_late.pop(exchange, None)
            self._given_up.discard(exchange)

    def process_ends(self) -> None:
        """Log what is known of the changes of requests whose threads have not come back, before the process ends."""
        self._report_returned()
        for exchange in self._left_running:
            _report_unreturned(exchange, f"ended with status {exchange.status}")
        for exchange in self._exchanges:
            _report_unreturned(exchange, "had no answer yet")

    def _cancel_late(self, exchange: Exchange, now: float) -> None:
        self._cancelled_late[exchange] = now
        message = "request %s: its time was up %g s ago, and it still runs: %s %s; cancelling it"
        logger.warning(message, exchange.id, STUCK_AFTER, *exchange.start_line[:2])
        self._cancellation.cancel(exchange.running)

    def _give_up(self, exchange: Exchange) -> None:
        self._given_up.add(exchange)
        self._cancelled_late.pop(exchange, None)
        try:
            stack = stacks().get(exchange.thread_id or 0, "  (there are more threads than can be shown)")
        except OSError as error:
            # Without a descriptor or a disk, the thread must be replaced all the more.
            stack = f"  (cannot be shown: {error})"
        # Checked again: only now is the stack known to be this request's.
        if exchange.worker_is_done:
            return
        changes = exchange.running.statements.outcome
        replaced = exchange.lane.replace(exchange)
        if exchange.adopted_by is not None:
            # It loses its connection, too.
            exchange.adopted_by.release(exchange)
        logger.error(
            "request %s: it was cancelled, but its thread is stuck: %s %s%s; %s. Its calls, innermost first:\n%s",
            exchange.id,
            *exchange.start_line[:2],
            "" if changes == "none" else f", changes={as_field(changes)}",
            "a spare thread takes its place"
            if replaced
            else f"no spare thread is left in lane {exchange.lane.name}; it will be replaced when another returns",
            stack,
        )
        if self._guard is not None:
            # In another thread: it takes the pool's lock.
            guard, running = self._guard, exchange.running
            self._cancellation.threads.keep(lambda: _give_up_connections(guard, running))


def expected_back(exchange: Exchange) -> float:
    """Return the time from which on the worker should do nothing more for an exchange that has ended."""
    if exchange.running.cancelled or exchange.state is State.EXPIRED:
        return exchange.ended_at
    # Not cancelled, it may use the time that it was given.
    return max(exchange.ended_at, exchange.running.deadline or 0)


def _give_up_connections(guard: Guard, running: TrackedRequest) -> None:
    given_up, kept = guard.abandon(running)
    if given_up:
        logger.error(
            "request %s: cut %d connections of the pool that its stuck thread held or waited for; the pool can open "
            "others",
            running.id,
            given_up,
        )
    if kept:
        message = "request %s: its stuck thread keeps %d connections of the pool as long as other requests use them"
        logger.error(message, running.id, kept)


def _report_return(exchange: Exchange, record: Record) -> None:
    """Complete the record of an exchange whose thread has come back; log the outcome if it matters."""
    before, record.changes = record.changes, exchange.running.statements.outcome
    # If the application answered after all was decided, the access log already has the outcome.
    if record.changes == "none" or (exchange.state in (State.DONE, State.FAILED) and record.changes == before):
        return
    logger.warning(
        "request %s: %s %s ended with status %d and changes=%s; its thread has come back since: changes=%s",
        exchange.id,
        *exchange.start_line[:2],
        exchange.status,
        as_field(before),
        as_field(record.changes),
        extra={"request_id": exchange.id},
    )


def _report_unreturned(exchange: Exchange, answer: str) -> None:
    """Log what is known of an exchange whose thread has not come back when the process ends."""
    outcome = exchange.running.statements.outcome
    if outcome != "none":
        logger.error(
            "request %s: %s %s %s; its thread had not come back when the process ended: changes=%s (the database rolls "
            "back what is open, unless it has been told to commit meanwhile)",
            exchange.id,
            *exchange.start_line[:2],
            answer,
            as_field(outcome),
            extra={"request_id": exchange.id},
        )


class LoopLag:
    """Measures, four times a second, by how many seconds the loop is late."""

    def __init__(self) -> None:
        self.seen = Distribution()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        due = time.monotonic() + INTERVAL
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look, due)

    def _look(self, due: float) -> None:
        self.seen.add(max(0.0, time.monotonic() - due))
        self.start()

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()
