"""Runs larger jobs on the loop in small steps, so that no iteration of the loop takes long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# Seconds in each iteration of the loop for such jobs, unless a single step takes longer.
TIME_A_TURN = 0.004


class Background:
    """Runs steps of jobs one after the other, for `TIME_A_TURN` in each iteration of the loop.

    A job with more to do adds its next step at the end, so clients that send a lot take turns, and others are served in
    between.
    """

    def __init__(self) -> None:
        self._steps: deque[Callable[[], None]] = deque()
        self._failed = RepeatedLog(logger)

    def add(self, step: Callable[[], None]) -> None:
        """Run a step soon. It should take no longer than a few hundred microseconds."""
        if not self._steps:
            asyncio.get_running_loop().call_soon(self._run)
        self._steps.append(step)

    def _run(self) -> None:
        until = time.monotonic() + TIME_A_TURN
        # A step is removed after it has run, so that a step which it adds does not schedule another `_run`.
        while True:
            try:
                self._steps[0]()
            except Exception as error:  # noqa: BLE001 - it is logged, and the steps of other connections must run
                self._failed.log(logging.ERROR, "a step of a connection's work failed", exc_info=error)
            self._steps.popleft()
            if not self._steps:
                return
            if time.monotonic() >= until:
                asyncio.get_running_loop().call_soon(self._run)
                return
