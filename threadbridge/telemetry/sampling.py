"""Which requests are recorded, if that is a certain share of them: decided at next to no cost for the others."""

from __future__ import annotations

import math
from random import Random


class Sampling:
    """Takes one of so many requests, each with the same probability and independently of the others. Loop side.

    :param ratio: the probability, from 0 to 1.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        # Its own: the functions of the module `random` belong to the application.
        self._random = Random()
        # How many are passed by until the next one is taken: drawn once for all of them.
        self._left = self._draw()

    def takes(self) -> bool:
        """Return whether this request is recorded."""
        if self._left > 0:
            self._left -= 1
            return False
        self._left = self._draw()
        return self._ratio > 0.0

    def _draw(self) -> int:
        """How many failures precede the first success: the geometric distribution."""
        if self._ratio >= 1.0:
            return 0
        if self._ratio <= 0.0:
            return 1 << 60
        return int(math.log(1.0 - self._random.random()) / math.log(1.0 - self._ratio))
