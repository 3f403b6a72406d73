"""Makes a record of each request that has ended and hands it to the readers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import State
from threadbridge.http.forwarded import peer_of
from threadbridge.telemetry.record import Record, record_of

if TYPE_CHECKING:
    from threadbridge.telemetry.recent import RecentRequests

logger = logging.getLogger("threadbridge")

# Seconds after which readers get a record at the latest; about how many at once, so that the loop is not held up.
INTERVAL = 0.1
BATCH = 200


class Telemetry:
    """Makes the records of a bridge and hands them to the readers, ten times a second."""

    def __init__(self, slow_after: float = 0.0) -> None:
        # With 0, no request is slow.
        self._slow_after = slow_after or float("inf")
        self._records: list[Record] = []
        self._readers: list[Callable[[Sequence[Record]], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._failed = RepeatedLog(logger)
        # Reads of an exchange what records do not have, for the access log's own format.
        self.keep: Callable[[Exchange], Mapping[str, str | int | float]] | None = None
        # Set during development: all statements are kept then, not only those of slow requests.
        self.recent: RecentRequests | None = None

    def subscribe(self, reader: Callable[[Sequence[Record]], None]) -> None:
        """Call the reader with all records from now on, in order."""
        self._readers.append(reader)

    def finished(self, exchange: Exchange) -> Record:
        """Make and return the record of an exchange that has ended."""
        # At once, while its memory is in the processor's caches; the next request may use it again.
        record = record_of(exchange, self._slow_after)
        if self.recent is not None:
            record.all_statements = tuple(exchange.running.statements.latest)
        if self.keep is not None:
            record.kept = self.keep(exchange)
            # It refers to the exchange.
            exchange.environ = None
        self._add(record)
        return record

    def refused(self, context: Any, request_line: str, status: int, sent: int) -> None:
        """Record a request that the HTTP server has refused, with its request line as far as it has been received."""
        record = Record()
        record.client = peer_of(context).address
        record.method, _, rest = request_line.partition(" ")
        record.target, _, record.version = rest.rpartition(" ")
        record.status = status
        record.ending = str(State.REFUSED)
        record.sent = sent
        record.started_at = time.time()
        self._add(record)

    def _add(self, record: Record) -> None:
        self._records.append(record)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self.flush)
        elif len(self._records) == BATCH:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Hand all new records to the readers. What a reader raises is logged."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records, self._records = self._records, []
        for reader in self._readers if records else ():
            try:
                reader(records)
            except Exception as error:  # noqa: BLE001 - it is logged, and there are other readers
                self._failed.log(logging.ERROR, "a reader of the telemetry failed", exc_info=error)
