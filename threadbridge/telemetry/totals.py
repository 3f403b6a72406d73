"""Totals of all requests since the process began, at next to no cost for each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from threadbridge.crossing.states import State
from threadbridge.telemetry.record import Record

# Upper bounds in seconds, up to the longest a request may take by default. A list: mypyc copies tuples at each use.
BOUNDS: Final = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0]
CLASSES: Final = tuple(f"{first}xx" for first in range(10))
# See `threadbridge.crossing.schedule`; "" where requests are not scheduled by cost.
COST_CLASSES: Final = ("", "short", "long", "unknown")

# Usual outcomes are counted from 0, so that a monitor sees their first increment.
USUAL: Final = (
    *((State.DONE, status) for status in ("2xx", "3xx", "4xx", "5xx")),
    *((ending, "5xx") for ending in (State.SHED, State.EXPIRED, State.FAILED)),
    *((ending, "4xx") for ending in (State.ABANDONED, State.REFUSED)),
)


class Distribution:
    """How many values lie between the `BOUNDS`, and their sum."""

    def __init__(self) -> None:
        # For each bound, the values up to it and over the one before; the last for those over all.
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.sum += value


class LaneTotals:
    """The times of a lane's requests, in seconds."""

    def __init__(self) -> None:
        self.wait_by_class = {name: Distribution() for name in COST_CLASSES}
        self.run_by_class = {name: Distribution() for name in COST_CLASSES}
        self.database = Distribution()
        # Of requests whose proxy tells when they came to it.
        self.before = Distribution()
        self.statements = 0
        # How many were expected to be long and were short.
        self.overestimated = 0

    @property
    def wait(self) -> Distribution:
        """The waits of all classes."""
        return _sum(self.wait_by_class)

    @property
    def run(self) -> Distribution:
        """The running times of all classes."""
        return _sum(self.run_by_class)


def _sum(distributions: Mapping[str, Distribution]) -> Distribution:
    whole = Distribution()
    for each in distributions.values():
        whole.sum += each.sum
        whole.counts = [one + other for one, other in zip(whole.counts, each.counts, strict=True)]
    return whole


class Totals:
    """The totals of a bridge whose lanes have these names."""

    def __init__(self, lanes: Sequence[str]) -> None:
        self.lanes = {name: LaneTotals() for name in lanes}
        # By lane ("" for requests refused before they had one), ending and class of status.
        self.requests = {(name, str(ending), status): 0 for name in lanes for ending, status in USUAL}
        self.requests["", str(State.REFUSED), "4xx"] = 0

    def read(self, records: Sequence[Record]) -> None:
        """A reader of the telemetry."""
        requests = self.requests
        for record in records:
            key = (record.lane, record.ending, CLASSES[record.status // 100])
            requests[key] = requests.get(key, 0) + 1
            if record.has_waited:
                lane = self.lanes[record.lane]
                lane.wait_by_class[record.cost_class].add(record.wait)
                if record.before >= 0.0:
                    lane.before.add(record.before)
                if record.has_run:
                    lane.run_by_class[record.cost_class].add(record.run)
                    lane.overestimated += record.overestimated
                if record.statements:
                    lane.database.add(record.database)
                    lane.statements += record.statements
