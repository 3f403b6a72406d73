"""The loop's larger jobs, done in small steps, so that no turn of the loop takes long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# Seconds in each turn of the loop that go to such jobs, unless a single step takes longer.
TIME_A_TURN = 0.004


class Background:
    """Runs steps of jobs one after the other, for `TIME_A_TURN` in each turn of the loop. Loop side.

    A job with more to do puts its next step at the end, so that many clients who send much have their turns, and all
    the others are served between.
    """

    def __init__(self) -> None:
        self._steps: deque[Callable[[], None]] = deque()
        self._failed = RepeatedLog(logger)

    def add(self, step: Callable[[], None]) -> None:
        """Have a step run soon; a few hundred microseconds are long for one."""
        if not self._steps:
            asyncio.get_running_loop().call_soon(self._run)
        self._steps.append(step)

    def _run(self) -> None:
        until = time.monotonic() + TIME_A_TURN
        # A step is taken off after it ran, so that what it adds does not ask for a turn of its own.
        while True:
            try:
                self._steps[0]()
            except Exception as error:  # noqa: BLE001 - it is logged, and other connections have steps too
                self._failed.log(logging.ERROR, "a step of a connection's work failed", exc_info=error)
            self._steps.popleft()
            if not self._steps:
                return
            if time.monotonic() >= until:
                asyncio.get_running_loop().call_soon(self._run)
                return
