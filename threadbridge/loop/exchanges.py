"""The open exchanges of a bridge: who may end them from outside, and what happens when one has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, cast

from threadbridge.crossing.cancellation import Cancellation
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.states import State
from threadbridge.loop.watch import Watch
from threadbridge.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from threadbridge.database.desk import Desk
    from threadbridge.telemetry.tracing import Tracing

# Seconds after which a thread that has not come back from an ended request is no longer expected to.
LATE_AFTER: Final = 2.0


class Exchanges:
    """The exchanges that have not ended, in `open`; for ``queue_timeout`` see `Watch`."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        cancellation: Cancellation,
        telemetry: Telemetry,
        desk: Desk,
        queue_timeout: float,
    ) -> None:
        self.open: set[Exchange] = set()
        # Makes a span of each request. Set before the first one.
        self.tracing: Tracing | None = None
        self._lanes = lanes
        self._cancellation = cancellation
        self._telemetry = telemetry
        self.watch = Watch(self.open, lanes, cancellation, desk, queue_timeout)

    def add(self, exchange: Exchange) -> None:
        """Keep an exchange until it ends."""
        self.open.add(exchange)
        self.watch.start()

    def ended(self, exchange: Exchange) -> None:
        """Record an exchange that has ended."""
        self.open.discard(exchange)
        # Looked at before the record is made: a record made after the thread's return has the final outcome.
        has_come_back = exchange.worker_is_done
        record = self._telemetry.finished(exchange)
        if self.tracing is not None and exchange.running.trace is not None:
            self.tracing.finish(exchange)
        if not has_come_back:
            self.watch.await_return(exchange, record)

    def stop(self, exchange: Exchange) -> None:
        """End a request for an operator, and cancel it whatever its method is.

        Its client gets 503 if the request has not begun to run, 504 if it runs; a response that has begun is cut.
        """
        if exchange.state in (State.RECEIVING, State.QUEUED):
            exchange.shed()
        # Not elif: a worker may have begun it meanwhile.
        if exchange.state is State.RUNNING:
            exchange.expire()
        if exchange.state is State.RESPONDING:
            exchange.connection.close()
            exchange.on_connection_close()
        self._cancellation.cancel(exchange.running)

    def can_run(self, lane: Lane) -> bool:
        """Return whether the lane has a thread that runs requests, or will when it has answered its present one."""
        return lane.works() and self.watch.overdue_threads(lane, LATE_AFTER) < lane.threads

    def unfinished(self) -> list[Exchange]:
        """Return the exchanges that have not ended, and those that have while a worker still runs them."""
        running = {cast(Exchange, job) for lane in self._lanes for job in lane.running()}
        return [*self.open, *(running - self.open)]

    def abandon(self, unfinished: Iterable[Exchange]) -> None:
        """Answer 503 to those that wait, and cancel those that run, whatever their method is."""
        for exchange in unfinished:
            exchange.shed()
            if not exchange.worker_is_done:
                self._cancellation.cancel(exchange.running)

    def cut(self) -> None:
        """End all exchanges as if their clients had left."""
        # Waiting ones first, so that none of them runs in place of a cancelled one.
        for exchange in sorted(self.open, key=lambda exchange: exchange.state is not State.QUEUED):
            exchange.on_connection_close()
        self._telemetry.flush()
