"""How a lane's threads were used lately, and what that makes of short requests."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

# The upper bounds of the levels, in seconds. The cautious costs of one level's requests are about the same; their
# clients take turns.
# Beyond the bounds there is one level more, and one of requests whose cost is not known. A list: mypyc copies tuples at
# each use.
BOUNDS: Final = [0.0032, 0.01, 0.032, 0.1, 0.32, 1.0, 3.2, 10.0]
UNKNOWN: Final = len(BOUNDS) + 1
# What costs less than 0.1 s is short in any case: nobody notices it.
SHORT: Final = 4
# Seconds over which the use of threads is averaged.
RECENT: Final = 60.0
# Another thread is kept when short requests would use those that are kept for more than this share of the time.
BUSY: Final = 0.7
# Seconds: if threads become free so often on average, none need be kept.
SOON: Final = 0.02
# So many requests tell whether that is so.
TELLING: Final = 10.0
# More requests than so many times as before must gain from a longer definition of short.
GAIN: Final = 1.05


def level_of(seconds: float) -> int:
    """Return the level of this cost."""
    return bisect_right(BOUNDS, seconds)


class RecentUse:
    """The jobs that ended in the last `RECENT` seconds, by the level in which they began. Its owner locks it."""

    def __init__(self) -> None:
        # How many, the seconds they took, and the sum of the squares.
        self.ended = [0.0] * UNKNOWN
        self.seconds = [0.0] * UNKNOWN
        self.squares = [0.0] * UNKNOWN
        self._averaged_at = 0.0
        # When the first one ended.
        self._began_at = 0.0

    def add(self, began: int, seconds: float, became: int, now: float) -> None:
        """Count a job; what a misjudged short one took beyond 0.1 s counts for what it became.

        It could not be told from short ones: that is no reason to define short otherwise.
        """
        if not self._began_at:
            self._began_at = self._averaged_at = now
        within = seconds if became == began else min(seconds, BOUNDS[SHORT - 1])
        self.ended[began] += 1
        self.seconds[began] += within
        self.squares[began] += within * within
        if within < seconds:
            self.seconds[became] += seconds - within
            self.squares[became] += seconds * seconds

    def _average(self, now: float) -> None:
        decay = math.exp(max(-700.0, (self._averaged_at - now) / RECENT))
        self._averaged_at = now
        for level in range(UNKNOWN):
            self.ended[level] *= decay
            self.seconds[level] *= decay
            self.squares[level] *= decay

    def short(self, running: Sequence[tuple[int, float]], width: int, most_kept: int, now: float) -> tuple[int, int]:
        """Return the level from which on jobs are long, and how many of ``width`` threads to keep for short ones.

        They are chosen so that requests gain most in total. Without kept threads, a request that finds all threads
        busy waits until one becomes free, on average for ``soon`` (half of E[S²]/E[S] for each thread). With them, a
        short one waits as in an M/G/1 queue of short ones alone (Pollaczek and Khinchine). What a limit gains is the
        difference for all requests below it. ``running`` has the level and expected seconds of each job that runs.
        """
        self._average(now)
        seconds, squares = self.seconds.copy(), self.squares.copy()
        for level, expected in running:
            seconds[level] += expected
            squares[level] += expected * expected
        soon = sum(squares) / max(sum(seconds), 1e-9) / 2 / width
        # At first, less than that is known.
        window = max(1.0, RECENT * (1 - math.exp((self._began_at - now) / RECENT)))
        limit, to_keep, most = SHORT, min(1, most_kept), 0.0
        load = square = count = 0.0
        for level in range(UNKNOWN - 1):
            load += seconds[level] / window
            square += squares[level] / window
            count += self.ended[level]
            if level < SHORT - 1 or (level >= SHORT and not self.ended[level]):
                continue
            kept = min(most_kept, max(1, math.ceil(load / BUSY)))
            gain = count * (soon - square / 2 / kept / (1 - load / kept)) if load < kept else 0.0
            if level < SHORT or gain > GAIN * max(0.0, most):
                limit, to_keep, most = level + 1, kept, gain
        if soon < SOON and sum(self.ended) >= TELLING:
            to_keep = 0
        return limit, to_keep
