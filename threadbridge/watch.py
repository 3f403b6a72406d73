"""Watches the clock for a bridge: limits on waiting, deadlines, and workers that do not come back."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback

from threadbridge.exchange import Exchange, State

logger = logging.getLogger("threadbridge")

# All limits are kept to about this many seconds: one look at all requests costs less than a timer for each.
INTERVAL = 0.25
# How long a worker may take to come back after nobody waits for it any more.
STUCK_AFTER = 10.0


class Watch:
    """Looks at the requests of a bridge four times a second, as long as there are any. Loop side.

    :param exchanges: the bridge's requests that have not ended.
    :param queue_timeout: seconds that a request may wait for a thread, until it is answered 503.
    """

    def __init__(self, exchanges: set[Exchange], queue_timeout: float) -> None:
        self._exchanges = exchanges
        self._queue_timeout = queue_timeout
        # Requests that have ended while a worker runs them, with the time from which it counts as stuck.
        self._left_running: dict[Exchange, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """There is something to watch."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def ended(self, exchange: Exchange) -> None:
        """The exchange has ended; its worker, if it has one, is expected back."""
        if exchange.thread_id is not None and not exchange.worker_is_done:
            deadline = exchange.running.deadline or 0
            waits = not exchange.running.cancelled and exchange.state is not State.EXPIRED
            self._left_running[exchange] = (deadline if waits else time.monotonic()) + STUCK_AFTER

    def _look(self) -> None:
        now = time.monotonic()
        for exchange in list(self._exchanges):
            if exchange.state is State.QUEUED and now - exchange.queued_at > self._queue_timeout:
                exchange.shed()
            elif exchange.state in (State.QUEUED, State.RUNNING) and now > (exchange.running.deadline or now):
                exchange.expire()
        for exchange, stuck_from in list(self._left_running.items()):
            if exchange.worker_is_done:
                del self._left_running[exchange]
            elif now >= stuck_from:
                del self._left_running[exchange]
                self._replace(exchange)
        self._timer = None
        if self._exchanges or self._left_running:
            self.start()

    def _replace(self, exchange: Exchange) -> None:
        frame = sys._current_frames().get(exchange.thread_id or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(the thread has just ended)\n"
        replaced = exchange.lane.replace(exchange)
        logger.error(
            "request %s: nobody waits for it, but its thread is stuck: %s %s; %s. The thread is here:\n%s",
            exchange.id,
            exchange.start_line.method,
            exchange.start_line.path,
            "another takes its place"
            if replaced
            else f"as many as the lane {exchange.lane.name} has are stuck already",
            stack,
        )
