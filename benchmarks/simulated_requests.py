"""The requests and the traffic that `benchmarks.simulation` simulates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from threadbridge.crossing.estimate import Estimate


class Request:
    """A request, and what becomes of it: a `threadbridge.crossing.schedule.Job` that takes a known time.

    :param seconds: how long it holds its thread.
    :param path: with the query, what the costs are learned by.
    :param group: requests of a group are not part of the figures, only their effect on the others is.
    :param computes: whether it shares the processors with others that compute, if these are limited.
    :param patience: seconds after which its client leaves.
    """

    def __init__(
        self,
        at: float,
        client: str,
        query: str,
        seconds: float,
        *,
        path: str = "/query/",
        group: str = "",
        computes: bool = False,
        patience: float = math.inf,
    ) -> None:
        self.at = at
        self.client = client
        self.query = query
        self.seconds = seconds
        self.path = path
        self.group = group
        self.computes = computes
        self.patience = patience
        self.estimate = Estimate(None, "", client)
        self.started = math.nan
        self.ended = math.nan
        # "answered", "refused" or "left"; "" until it ends.
        self.outcome = ""

    def end(self, now: float, outcome: str) -> None:
        """Note how it ends, which it does once."""
        assert not self.outcome, f"{self.outcome}, and then {outcome}"
        self.ended = now
        self.outcome = outcome

    def claim(self) -> bool:
        """See `threadbridge.crossing.schedule.Job`."""
        return True

    def run(self) -> None:
        """See `threadbridge.crossing.schedule.Job`; nothing really runs."""


class Traffic(NamedTuple):
    """The requests of a workload.

    :param seconds: how long it is simulated.
    :param short: the seconds up to which requests are short ones in the figures, whatever the rule takes for short.
    :param processors: how many the requests that compute share; 0: as many as they want.
    :param following: gives the request, if any, that follows one that has ended.
    """

    requests: list[Request]
    seconds: float
    short: float = 0.1
    processors: int = 0
    following: Callable[[Request, float], Request | None] | None = None
