"""How much more a process can serve, in the forms that load balancers read. Loop side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

from threadbridge.crossing.costs import Costs
from threadbridge.crossing.lanes import Lane

# The seconds of waiting that halve a weight: less, nobody notices.
HALVED_AFTER: Final = 0.1
# Seconds between two looks for the report, and over which its figures are averaged: Envoy uses the latest report once a
# second, however untypical the moment was.
LOOK_EVERY: Final = 0.1
AVERAGED_OVER: Final = 2.0
# Envoy ignores reports without any utilization.
LEAST_UTILIZATION: Final = 0.00001
# The least weight that reports take into account.
LEAST_REPORTED: Final = 5


def weight(lanes: Sequence[Lane], costs: Costs | None) -> int:
    """Return how many per cent of its usual share of requests a process can take, from 1 to 100.

    It is that of the lane with the least: the share of the threads that long requests leave, less if short ones wait.
    With ``costs``, it is less if requests take longer than usual. Short requests that run do not count, since a
    balancer sees those that it sends: if both counted them, the load would swing between the hosts.
    """
    share = 1.0
    for lane in lanes:
        spare, wait = lane.spare()
        share = min(share, spare / (1 + wait / HALVED_AFTER))
    if costs is not None:
        share *= costs.pace.share
    # Not 0: HAProxy would stop sending requests.
    return max(1, round(100 * share))


class LoadReport:
    """A header field in the form of ORCA (Open Request Cost Aggregation), from which Envoy computes weights.

    ``rps_fractional`` and ``eps`` are the responses a second, and those of them with a status of 500 or more.
    ``application_utilization`` is the share of the threads' time that these responses took, divided by the `weight`.
    Envoy divides the first by the last, so a host that gets few requests is not taken for one that can take few.
    Envoy's parser: https://github.com/envoyproxy/envoy/blob/main/source/common/orca/orca_parser.cc
    """

    def __init__(self, lanes: Sequence[Lane], costs: Costs | None) -> None:
        self._lanes = lanes
        self._costs = costs
        self._threads = sum([lane.threads for lane in lanes])
        # Of the responses since the last look, and each second on average.
        self._responses = self._errors = 0
        self._seconds = 0.0
        self._rate = self._error_rate = self._used = 0.0
        self._looked_at = time.monotonic()
        self._line = b""

    def line_after(self, status: int, seconds: float) -> bytes:
        """Count a response, which took a thread for so long; return the line of the header, with its CRLF."""
        self._responses += 1
        self._seconds += seconds
        if status >= 500:
            self._errors += 1
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY or not self._line:
            self._look(now)
        return self._line

    def _look(self, now: float) -> None:
        passed = max(now - self._looked_at, LOOK_EVERY)
        self._looked_at = now
        latest = 1 - math.exp(-passed / AVERAGED_OVER)
        self._rate += (self._responses / passed - self._rate) * latest
        self._error_rate += (self._errors / passed - self._error_rate) * latest
        self._used += (self._seconds / passed - self._used) * latest
        self._responses = self._errors = 0
        self._seconds = 0.0
        # A slow host's responses take longer, so it is counted twice: it must still get enough to show a change.
        share = max(LEAST_REPORTED, weight(self._lanes, self._costs)) / 100
        utilization = max(LEAST_UTILIZATION, self._used / self._threads / share)
        self._line = (
            f"endpoint-load-metrics: TEXT application_utilization={utilization:.5f},"
            f"rps_fractional={self._rate:.3f},eps={self._error_rate:.3f}\r\n"
        ).encode()
