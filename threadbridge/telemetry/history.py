"""What has ended lately: the slowest requests of the last minute, counts and latencies of the last 15."""

from __future__ import annotations

import heapq
import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from threadbridge.telemetry.record import Record

MINUTE: Final = 60
# Requests kept of each second of the last minute, answered and others: hundreds a second could not be told apart.
KEPT_A_SECOND: Final = {"done": 6, "other": 3}
SLOT: Final = 10
SLOTS: Final = 15 * 60 // SLOT
LONGEST_TARGET: Final = 300
# These were not answered by the application, and so their times say nothing about it.
UNANSWERED: Final = frozenset({"shed", "abandoned", "refused"})

# Latencies are counted in bins, each 10 % wider than the one before it.
_SHORTEST: Final = 0.0001
_BINS_PER_E: Final = 1 / math.log(1.1)


def bin_of(seconds: float) -> int:
    """The bin in which a latency is counted."""
    return int(math.log(seconds / _SHORTEST) * _BINS_PER_E) if seconds > _SHORTEST else 0


def quantiles(bins: Mapping[int, int]) -> dict[str, float | None]:
    """The latencies, in seconds, below which 50, 95 and 99 % of all lie, to about 5 %; None if there are none."""
    numbers = sorted(bins)
    sums = list(accumulate(bins[number] for number in numbers))
    found: dict[str, float | None] = {"p50": None, "p95": None, "p99": None}
    if sums and sums[-1]:
        for name in found:
            number = numbers[bisect_left(sums, int(name[1:]) / 100 * sums[-1])]
            found[name] = _SHORTEST * math.exp((number + 0.5) / _BINS_PER_E)
    return found


class History:
    """Reads the telemetry's records and keeps what the operators' page shows of them."""

    def __init__(self) -> None:
        # By the number of the slot of `SLOT` seconds: how many requests had each ending, and each bin's latency.
        self._slots: dict[int, tuple[dict[str, int], dict[int, int]]] = {}
        # By the second in which they ended and the kind of ending: their durations, with a number that settles ties.
        self._slowest: dict[tuple[int, str], list[tuple[float, int, Record]]] = {}
        self._number = 0

    def read(self, records: Sequence[Record]) -> None:
        """Take in what has ended; a reader for `Telemetry.subscribe`."""
        second = -1
        endings: dict[str, int] = {}
        bins: dict[int, int] = {}
        for record in records:
            total = record.total
            ended = int(record.started_at + total)
            if ended != second:
                # Mostly all of them have ended in the same one.
                second = ended
                endings, bins = self._slots.get(ended // SLOT) or self._new_slot(ended // SLOT)
            ending = record.ending
            endings[ending] = endings.get(ending, 0) + 1
            # A WebSocket ends when its client has had enough.
            if record.has_run and ending not in UNANSWERED and record.status != 101:
                number = bin_of(total)
                bins[number] = bins.get(number, 0) + 1
            kind = "done" if ending == "done" else "other"
            slowest = self._slowest.get((ended, kind))
            if slowest is None:
                slowest = self._new_second(ended, kind)
            if len(slowest) < KEPT_A_SECOND[kind]:
                self._number += 1
                heapq.heappush(slowest, (total, self._number, record))
            elif total > slowest[0][0]:
                self._number += 1
                heapq.heapreplace(slowest, (total, self._number, record))

    def _new_slot(self, number: int) -> tuple[dict[str, int], dict[int, int]]:
        for old in [old for old in self._slots if old < number - SLOTS]:
            del self._slots[old]
        return self._slots.setdefault(number, ({}, {}))

    def _new_second(self, second: int, kind: str) -> list[tuple[float, int, Record]]:
        for old in [old for old in self._slowest if old[0] < second - MINUTE]:
            del self._slowest[old]
        return self._slowest.setdefault((second, kind), [])

    def slots(self) -> dict[str, Any]:
        """The last 15 minutes, slot by slot, for JSON."""
        first = int(time.time()) // SLOT - SLOTS
        return {
            str(number): {"endings": endings, "bins": bins}
            for number, (endings, bins) in self._slots.items()
            if number > first
        }

    def finished(self) -> list[dict[str, Any]]:
        """The slowest requests of each second of the last minute, for JSON."""
        since = int(time.time()) - MINUTE
        return [
            {
                "key": record.key,
                "id": record.id,
                "client": record.client,
                "method": record.method,
                "url": record.target[:LONGEST_TARGET],
                "lane": record.lane,
                "upstream": record.upstream,
                "status": record.status,
                "ending": record.ending,
                "received": record.started_at,
                "total": round(record.total, 4),
                "waiting": round(record.wait, 4),
                "running": round(record.run, 4),
                "database": round(record.database, 4),
                "statements": record.statements,
                "changes": record.changes,
            }
            for (second, _), slowest in self._slowest.items()
            if second > since
            for _, _, record in slowest
        ]
