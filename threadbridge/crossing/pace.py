"""Whether requests take longer than they usually do: on a host whose processor, network or disk has become slow."""

from __future__ import annotations

import math
from typing import Final

# What is recent: so many seconds, but at least so many requests.
RECENT: Final = 2.0
FEWEST: Final = 10
# What is usual for a route is the average of its first requests, and then follows in so many seconds: a host that stays
# slow is taken as it is after some minutes.
FIRST: Final = 100
USUAL: Final = 600.0
# One request counts as so many times as slow as usual at most, as a logarithm.
MOST: Final = 2.0
# Up to the first slowdown, a host gets its full share; from the second on, next to nothing.
TOLERATED: Final = 1.5
TOO_SLOW: Final = 3.0


class Usual:
    """What the requests of a route usually take, as a logarithm."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0


class Pace:
    """How slow requests are at present, compared with what is usual for their routes. Its owner locks it.

    It is the average of the logarithms: no balancer can tell whether a host is slow or has got the slow requests.
    """

    def __init__(self) -> None:
        self._recent = 0.0
        self._at = 0.0

    def add(self, usual: Usual, took: float, last: float, now: float) -> None:
        """Count a request of a route; ``took`` is a logarithm, ``last`` when the route had its latest request."""
        difference = took - usual.mean
        usual.count += 1
        passed = max(0.0, min(now - last, USUAL / FEWEST))
        usual.mean += difference * (1 / usual.count if usual.count <= FIRST else passed / USUAL)
        if usual.count <= FEWEST:
            # Nothing is usual yet.
            return
        # The clock may have been set back, here and above.
        passed = max(0.0, now - self._at)
        self._at = now
        self._recent += (max(-MOST, min(MOST, difference)) - self._recent) * min(1 / FEWEST, passed / RECENT)

    @property
    def slowdown(self) -> float:
        """How many times as long as usual requests take."""
        return math.exp(self._recent)

    @property
    def share(self) -> float:
        """The share of its usual requests that a host of this pace should get, from 0 to 1."""
        return max(0.0, min(1.0, (TOO_SLOW - self.slowdown) / (TOO_SLOW - TOLERATED)))
