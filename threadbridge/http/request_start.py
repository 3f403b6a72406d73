"""How long a request was on its way to the server, by the ``X-Request-Start`` of a trusted proxy."""

from __future__ import annotations

import re
import time
from typing import Final

REQUEST_START: Final = "X-Request-Start"

# ``t=1700000000.123`` of nginx (``t=${msec}``), ``t=1700000000123`` of HAProxy, ``t=1700000000123456`` of Apache
# (``%t``); some platforms leave out the ``t=``.
_START: Final = re.compile(r"(?:t=)?([0-9]{9,17}(?:\.[0-9]{1,9})?)").fullmatch
# By their size: in seconds until the year 5138, in milliseconds until then, and otherwise in microseconds.
_UNITS: Final = ((1e11, 1.0), (1e14, 1e-3), (1e17, 1e-6))
# What is older than this many seconds, or lies this far in the future, is no time at which a request came.
IMPLAUSIBLE: Final = 3600.0
# For so many seconds at least, and twice as long at most, the least difference of the clocks is remembered: longer
# than an overload lasts in which every request waits, and too short for clocks to drift apart.
PERIOD: Final = 3600.0
# How many proxies are remembered at most.
MAX_PROXIES: Final = 256


def start_of(value: str) -> float:
    """Return the time that the header's value names, in seconds since 1970; 0.0 if it names none.

    Of several values, the last is the trusted proxy's own; the others came with the request.
    """
    match = _START(value.rpartition(",")[2].strip(" \t"))
    if match is None:
        return 0.0
    number = float(match[1])
    return next((number * unit for limit, unit in _UNITS if number < limit), 0.0)


class RequestStarts:
    """Tells how long requests were on their way, although the clocks of other hosts differ. Loop side.

    The request of a proxy that took the shortest time to arrive took almost none, so its difference is that of the
    clocks, and is subtracted from those of the others. A proxy on this host has the same clock: here only a negative
    difference, after the clock was set, counts.
    """

    def __init__(self) -> None:
        # By the proxy's address: the least difference in the present period, and in the one before.
        self._least: dict[str, float] = {}
        self._least_before: dict[str, float] = {}
        self._period_began = 0.0

    def waited(self, proxy: str, *, is_local: bool, value: str) -> float:
        """Return the seconds since the request came to the proxy; -1.0 if the header's value does not tell.

        :param proxy: the proxy's address.
        :param is_local: whether the proxy runs on this host.
        """
        start = start_of(value)
        now = time.time()
        difference = now - start
        if not start or not -IMPLAUSIBLE < difference < IMPLAUSIBLE:
            return -1.0
        if not 0.0 <= now - self._period_began < PERIOD:
            self._least_before, self._least = self._least, {}
            self._period_began = now
        if proxy not in self._least and len(self._least) == MAX_PROXIES:
            self._least.clear()
        least = min(difference, self._least.get(proxy, difference))
        self._least[proxy] = least
        least = min(least, self._least_before.get(proxy, least))
        return difference - (min(least, 0.0) if is_local else least)
