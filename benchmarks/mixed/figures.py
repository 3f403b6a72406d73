"""Figures that both measurements have in common."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.traffic import NO_ANSWER, Answer


class Latencies(NamedTuple):
    """In seconds: what half of the requests, 99 % of them, and all of them took at most."""

    requests: int
    median: float
    most: float
    worst: float

    @property
    def text(self) -> str:
        return " · ".join(duration(seconds) for seconds in (self.median, self.most, self.worst))


def latencies(answers: Iterable[Answer]) -> Latencies:
    """Those of answers with status 200 and of requests without an answer, which took at least as long as was waited."""
    seconds = sorted(answer.seconds for answer in answers if answer.status in (NO_ANSWER, 200))
    if not seconds:
        return Latencies(0, 0.0, 0.0, 0.0)
    return Latencies(len(seconds), statistics.median(seconds), seconds[math.ceil(0.99 * len(seconds)) - 1], seconds[-1])


def overlap(began: float, ended: float, first: float, last: float) -> float:
    """How many seconds of the one interval are in the other."""
    return max(0.0, min(ended, last) - max(began, first))


def duration(seconds: float) -> str:
    if seconds < 0.01:
        return f"{1000 * seconds:.1f} ms"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
