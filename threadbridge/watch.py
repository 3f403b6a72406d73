"""Watches the clock for a bridge: limits on waiting, deadlines, and workers that do not come back."""

from __future__ import annotations

import asyncio
import logging
import time

from threadbridge.exchange import Exchange
from threadbridge.lanes import Lane
from threadbridge.late_changes import LateChanges
from threadbridge.states import State
from threadbridge.threads import stacks

logger = logging.getLogger("threadbridge")

# All limits are kept to about this many seconds: one look at all requests costs less than a timer for each.
INTERVAL = 0.25
# How long a worker may take to come back after nobody waits for it any more.
STUCK_AFTER = 10.0


class Watch:
    """Looks at the requests of a bridge four times a second, as long as there are any. Loop side.

    :param exchanges: the bridge's requests that have not ended.
    :param queue_timeout: seconds that a request may wait for a thread, until it is answered 503.
    :param late_changes: is asked to look, too.
    """

    def __init__(self, exchanges: set[Exchange], queue_timeout: float, late_changes: LateChanges) -> None:
        self._exchanges = exchanges
        self._queue_timeout = queue_timeout
        self._late_changes = late_changes
        # Requests that have ended while a worker runs them, with the times at which they have.
        self._left_running: dict[Exchange, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """There is something to watch."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def ended(self, exchange: Exchange) -> None:
        """The exchange has ended; its worker, if it has one, is expected back."""
        if not exchange.worker_is_done:
            self._left_running[exchange] = time.monotonic()

    def overdue_threads(self, lane: Lane, seconds: float) -> int:
        """How many threads of the lane are this many seconds late, and not replaced yet."""
        now = time.monotonic()
        return sum(
            exchange.lane is lane and not exchange.worker_is_done and now >= expected_back(exchange, ended_at) + seconds
            for exchange, ended_at in self._left_running.items()
        )

    def _look(self) -> None:
        self._timer = None
        if self._exchanges or self._left_running or len(self._late_changes):
            # Before anything else, so that whatever happens the watch goes on.
            self.start()
        if len(self._late_changes):
            self._late_changes.look()
        now = time.monotonic()
        for exchange in list(self._exchanges):
            if exchange.state is State.QUEUED and now - exchange.queued_at > self._queue_timeout:
                exchange.shed()
            elif exchange.state in (State.QUEUED, State.RUNNING) and now > (exchange.running.deadline or now):
                exchange.expire()
        for exchange, ended_at in list(self._left_running.items()):
            if exchange.worker_is_done:
                del self._left_running[exchange]
            elif now >= expected_back(exchange, ended_at) + STUCK_AFTER:
                del self._left_running[exchange]
                stack = stacks().get(exchange.thread_id or 0, "  (there are more threads than can be shown)")
                # Looked at once more: only now is the stack known to be this request's.
                if not exchange.worker_is_done:
                    _replace(exchange, stack)


def expected_back(exchange: Exchange, ended_at: float) -> float:
    """From when on the worker should do nothing more for the request."""
    if exchange.running.cancelled or exchange.state is State.EXPIRED:
        return ended_at
    # Nobody has told it to stop: it may take the time that it had.
    return max(ended_at, exchange.running.deadline or 0)


def _replace(exchange: Exchange, stack: str) -> None:
    replaced = exchange.lane.replace(exchange)
    changes = exchange.running.statements.outcome
    logger.error(
        "request %s: nobody waits for it, but its thread is stuck: %s %s%s; %s. Its calls, innermost first:\n%s",
        exchange.id,
        exchange.start_line.method,
        exchange.start_line.path,
        "" if changes == "none" else f", changes={changes}",
        "another takes its place"
        if replaced
        else f"none takes its place, for as many as the lane {exchange.lane.name} has are replaced already",
        stack,
    )
