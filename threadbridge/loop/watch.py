"""Watches the clock for a bridge: limits on waiting, deadlines, and workers that do not come back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Set
from typing import Protocol

from threadbridge.common.threads import stacks
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.states import State
from threadbridge.loop.late_changes import LateChanges
from threadbridge.sql.statements import as_field

logger = logging.getLogger("threadbridge")

# All limits are kept to about this many seconds: one look at all requests costs less than a timer for each.
INTERVAL = 0.25
# How long a worker may take to come back after nobody waits for it any more. Then it is cancelled if it was not
# before, because of its method; and if that does not help for as long again, its thread is stuck.
STUCK_AFTER = 10.0


class Watched(Protocol):
    """What a watch needs of its bridge."""

    @property
    def exchanges(self) -> Set[Exchange]: ...

    def cancel_late(self, exchange: Exchange) -> None: ...

    def give_up_connections(self, exchange: Exchange) -> None: ...

    def retry_threads(self) -> bool: ...


class Watch:
    """Looks at the requests of a bridge four times a second, as long as there are any.

    :param bridge: whose requests, as long as they have not ended, are looked at.
    :param queue_timeout: seconds that a request may wait for a thread, until it is answered 503.
    :param late_changes: is asked to look, too.
    """

    def __init__(self, bridge: Watched, queue_timeout: float, late_changes: LateChanges) -> None:
        self._bridge = bridge
        self._exchanges = bridge.exchanges
        self._queue_timeout = queue_timeout
        self._late_changes = late_changes
        # Requests that have ended while a worker runs them, with the times at which they have.
        self._left_running: dict[Exchange, float] = {}
        # Of these, those that were cancelled only because they did not come back, with the times at which they were.
        self._cancelled_late: dict[Exchange, float] = {}
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
        if self._bridge.retry_threads():
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
                self._forget(exchange)
            elif now < max(expected_back(exchange, ended_at), self._cancelled_late.get(exchange, 0.0)) + STUCK_AFTER:
                continue
            elif not exchange.running.cancelled and exchange not in self._cancelled_late:
                self._cancel(exchange, now)
            else:
                self._give_up(exchange)

    def _forget(self, exchange: Exchange) -> None:
        del self._left_running[exchange]
        self._cancelled_late.pop(exchange, None)

    def _cancel(self, exchange: Exchange, now: float) -> None:
        self._cancelled_late[exchange] = now
        logger.warning(
            "request %s: its time was up %g s ago, and it still runs: %s %s; cancelling it",
            exchange.id,
            STUCK_AFTER,
            exchange.start_line.method,
            exchange.start_line.path,
        )
        self._bridge.cancel_late(exchange)

    def _give_up(self, exchange: Exchange) -> None:
        self._forget(exchange)
        stack = stacks().get(exchange.thread_id or 0, "  (there are more threads than can be shown)")
        # Looked at once more: only now is the stack known to be this request's.
        if not exchange.worker_is_done:
            _replace(exchange, stack)
            self._bridge.give_up_connections(exchange)


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
        "request %s: it was cancelled, but its thread is stuck: %s %s%s; %s. Its calls, innermost first:\n%s",
        exchange.id,
        exchange.start_line.method,
        exchange.start_line.path,
        "" if changes == "none" else f", changes={as_field(changes)}",
        "a spare thread takes its place"
        if replaced
        else f"no spare thread is left in lane {exchange.lane.name}; it will be replaced when another returns",
        stack,
    )
