"""The way back from the workers to the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from threadbridge.common.forks import leave


class Hop:
    """Runs callbacks on the loop for the workers; workers that post together share one wake-up.

    The deque belongs to both sides, its ``append`` and ``popleft`` being atomic. The flag is set by whoever
    asks for a wake-up and cleared by the loop *before* it empties the deque: what is posted after the clearing asks
    anew, what was posted before it is delivered by this very round.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Whether this process is a fork of the one that has the loop.
        self.is_copy = False
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waking = False

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        """Have ``callback(*args)`` run on the loop soon, in the order of posting. Worker side.

        Raises ``RuntimeError`` when the loop is closed: the process is at its end and nobody is left to answer.
        """
        if self.is_copy:
            leave()
        self._posted.append((callback, args))
        if not self._waking:
            self._waking = True
            self.loop.call_soon_threadsafe(self._deliver)

    def become_copy(self) -> None:
        """This is a forked process: a worker that comes back to the server's code ends it."""
        self.is_copy = True

    def _deliver(self) -> None:
        self._waking = False
        posted = self._posted
        try:
            # Only what is here now: workers that post without pause must not keep the loop from its sockets.
            for _ in range(len(posted)):
                callback, args = posted.popleft()
                callback(*args)
        finally:
            # Also after a callback that raised, which asyncio logs: the others are still delivered.
            if posted and not self._waking:
                self._waking = True
                self.loop.call_soon(self._deliver)
