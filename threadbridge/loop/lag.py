"""How late the loop is: what holds it up holds up every client."""

from __future__ import annotations

import asyncio
import time

from threadbridge.telemetry.totals import Distribution

INTERVAL = 0.25


class LoopLag:
    """Sets a timer again and again, and keeps how many seconds late each comes."""

    def __init__(self) -> None:
        self.seen = Distribution()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._timer is None:
            self._set(time.monotonic())

    def _set(self, now: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look, now + INTERVAL)

    def _look(self, due: float) -> None:
        now = time.monotonic()
        self.seen.add(max(0.0, now - due))
        self._set(now)

    def stop(self) -> None:
        """Set no more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
