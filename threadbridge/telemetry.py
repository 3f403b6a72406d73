"""What is known of each request when it has ended: one record, and whoever wants to read it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from threadbridge.exchange import Exchange
from threadbridge.statements import Statement
from threadbridge.states import State

logger = logging.getLogger("threadbridge")

# Readers get what has ended at most so late, and about so many at once: the loop is not theirs for long.
INTERVAL = 0.1
BATCH = 200


class Record(NamedTuple):
    """A request that has ended. Times in seconds.

    :param id: its name in all logs; "" for one that was refused before it was a request.
    :param client: the client's address, "" on a Unix socket.
    :param target: path and query, as the client sent them.
    :param version: the protocol's, such as ``HTTP/1.1``; of what was refused, as ``method`` and ``target``, unchecked.
    :param ending: the value of its `State`.
    :param lane: the lane's name; "" for one that was refused.
    :param sent: bytes of the response's body that were given to the connection.
    :param wait: from the end of the request until a thread took it, or until it ended without.
    :param run: from there until the response began, or until the request ended without a response.
    :param database: how long its statements took together.
    :param total: from the end of the request's head until all ended.
    :param statements: how many there were.
    :param started_at: when the request's head was there: seconds since 1970.
    :param started: the same by `time.monotonic`.
    :param has_waited: whether it was queued for a thread.
    :param has_run: whether a thread took it.
    :param slow_statements: of a slow request its latest statements, which may still run; None of any other.
    """

    id: str
    client: str
    method: str
    target: str
    version: str
    status: int
    ending: str
    lane: str
    sent: int
    wait: float
    run: float
    database: float
    total: float
    statements: int
    started_at: float
    started: float
    referer: str
    user_agent: str
    has_waited: bool
    has_run: bool
    slow_statements: tuple[Statement, ...] | None


Reader: TypeAlias = Callable[[Sequence[Record]], None]


class Telemetry:
    """Makes the records of a bridge, a tenth of a second's at a time, and hands them to the readers. Loop side.

    :param slow_after: seconds of waiting and running, or in the database, from which on a request is slow; 0: none is.
    """

    def __init__(self, slow_after: float = 0.0) -> None:
        self._slow_after = slow_after or float("inf")
        self._records: list[Record] = []
        self._readers: list[Reader] = []

    def subscribe(self, reader: Reader) -> Callable[[], None]:
        """Have ``reader(records)`` called with all that end from now on, in order; a function that takes that back."""
        self._readers.append(reader)
        return lambda: self._readers.remove(reader)

    def finished(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        # At once: its memory is the next request's, while it is still in the processor's caches.
        self._add(_record(exchange, self._slow_after))

    def refused(self, client: str, request_line: str, status: int, sent: int) -> None:
        """The server has refused what came before it was an exchange."""
        method, _, rest = request_line.partition(" ")
        target, _, version = rest.rpartition(" ")
        nothing = (0.0, 0.0, 0.0, 0.0, 0)
        times = (time.time(), time.monotonic())
        self._add(
            Record(
                "", client, method, target, version, status, str(State.REFUSED), "", sent, *nothing, *times,
                "", "", False, False, None,
            )
        )  # fmt: skip

    def _add(self, record: Record) -> None:
        waiting = self._records
        if not waiting:
            asyncio.get_running_loop().call_later(INTERVAL, self.flush)
        elif len(waiting) == BATCH:
            asyncio.get_running_loop().call_soon(self.flush)
        waiting.append(record)

    def flush(self) -> None:
        """Give the readers all that has ended until now. What a reader raises is logged."""
        if not self._records:
            return
        records, self._records = self._records, []
        for reader in list(self._readers):
            try:
                reader(records)
            except Exception:
                logger.exception("a reader of the telemetry failed")


def _record(exchange: Exchange, slow_after: float) -> Record:
    line = exchange.start_line
    headers = exchange.headers
    ended_at = exchange.ended_at
    queued_at = exchange.queued_at
    answered_at = exchange.answered_at or ended_at
    run_at = exchange.run_at
    if run_at > answered_at:
        # A worker has taken it in the very moment in which it ended.
        run_at = answered_at
    wait = (run_at or ended_at) - queued_at if queued_at else 0.0
    run = answered_at - run_at if run_at else 0.0
    total = ended_at - exchange.started
    count, database = 0, 0.0
    statements = exchange.running.statements
    if statements.latest:
        latest = statements.latest[-1]
        # One that runs on counts until nobody waited for it any more.
        running = 0.0 if latest.ended else max(0.0, ended_at - latest.started)
        count, database = statements.count, statements.seconds + running
    is_slow = wait + run >= slow_after or database >= slow_after
    return Record(
        exchange.id,
        exchange.peer.address,
        line.method,
        line.path,
        line.version,
        exchange.status,
        str(exchange.state),
        exchange.lane.name,
        exchange.sent,
        wait,
        run,
        database,
        total,
        count,
        time.time() - total,
        exchange.started,
        # `get` is slow for what is not there.
        headers["Referer"] if "Referer" in headers else "",  # noqa: SIM401
        headers["User-Agent"] if "User-Agent" in headers else "",  # noqa: SIM401
        queued_at > 0.0,
        run_at > 0.0,
        tuple(statements.latest) if is_slow else None,
    )
