"""The way from the workers back to the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from threadbridge.common.forks import leave


class Hop:
    """Runs callbacks on the loop for the workers; workers that post together share one wake-up.

    The deque belongs to both sides: its ``append`` and ``popleft`` are atomic. A worker appends *before* it reads the
    flag; if it is not set, the worker sets it and asks for a wake-up. The loop clears the flag *before* its first
    ``popleft``: callbacks appended before that are delivered in this round, and workers that append later see that the
    flag is cleared. Without the interpreter's lock, this order relies on the deque's own, which ``len`` does not take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Whether this process is a fork of the one that has the loop.
        self.is_copy = False
        # The loop's own: a worker's, which names its request, would spread to everything that a callback schedules.
        self._context = copy_context()
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waking = False

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        """Run ``callback(*args)`` on the loop soon, in the order of posting. Worker side.

        Raises ``RuntimeError`` when the loop is closed, at the end of the process.
        """
        if self.is_copy:
            leave()
        self._posted.append((callback, args))
        if not self._waking:
            self._waking = True
            try:
                self.loop.call_soon_threadsafe(self._deliver, context=self._context)
            except RuntimeError:
                self._waking = False
                raise

    def become_copy(self) -> None:
        """Note that this is a forked process: a worker that returns to the server's code ends it."""
        self.is_copy = True

    def _deliver(self) -> None:
        self._waking = False
        posted = self._posted
        try:
            callback, args = posted.popleft()
        except IndexError:
            # Two workers have asked for a wake-up, and the first round has delivered all.
            return
        try:
            # Only the present ones: workers that post without pause must not keep the loop from its sockets.
            for _ in range(len(posted)):
                callback(*args)
                callback, args = posted.popleft()
            callback(*args)
        finally:
            # After a callback that raised too, which asyncio logs: the others are still delivered.
            if posted and not self._waking:
                self._waking = True
                self.loop.call_soon(self._deliver)
