"""What is known of each request when it has ended, and whoever wants to read it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import State
from threadbridge.telemetry.record import Record, record_of

logger = logging.getLogger("threadbridge")

# Readers get what has ended at most so late, and about so many at once: the loop is not theirs for long.
INTERVAL = 0.1
BATCH = 200

Reader: TypeAlias = Callable[[Sequence[Record]], None]


class Telemetry:
    """Makes the records of a bridge, a tenth of a second's at a time, and hands them to the readers. Loop side.

    :param slow_after: seconds of waiting and running, or in the database, from which on a request is slow; 0: none is.
    """

    def __init__(self, slow_after: float = 0.0) -> None:
        self._slow_after = slow_after or float("inf")
        self._records: list[Record] = []
        self._readers: list[Reader] = []
        self._timer: asyncio.TimerHandle | None = None
        self._failed = RepeatedLog(logger)

    def subscribe(self, reader: Reader) -> Callable[[], None]:
        """Have ``reader(records)`` called with all that end from now on, in order; a function that takes that back."""
        self._readers.append(reader)
        return lambda: self._readers.remove(reader)

    def finished(self, exchange: Exchange) -> Record:
        """An exchange has ended; its record."""
        # At once: its memory is the next request's, while it is still in the processor's caches.
        record = record_of(exchange, self._slow_after)
        self._add(record)
        return record

    def refused(self, client: str, request_line: str, status: int, sent: int) -> None:
        """The server has refused what came before it was an exchange."""
        method, _, rest = request_line.partition(" ")
        target, _, version = rest.rpartition(" ")
        nothing = (0.0, 0.0, 0.0, 0.0, 0, "none")
        times = (time.time(), time.monotonic())
        self._add(
            Record(
                "", "", client, method, target, version, status, str(State.REFUSED), "", sent, *nothing, *times,
                "", "", False, False, None,
            )
        )  # fmt: skip

    def _add(self, record: Record) -> None:
        self._records.append(record)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._on_time)
        elif len(self._records) == BATCH:
            asyncio.get_running_loop().call_soon(self.flush)

    def _on_time(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Give the readers all that has ended until now. What a reader raises is logged."""
        if not self._records:
            return
        records, self._records = self._records, []
        for reader in list(self._readers):
            try:
                reader(records)
            except Exception as error:  # noqa: BLE001 - it is logged, and there are other readers
                self._failed.log(logging.ERROR, "a reader of the telemetry failed", exc_info=error)
