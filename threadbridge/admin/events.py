"""Server-sent events: one a second, made once for all readers, and only while there are any."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# Seconds between events.
INTERVAL = 1.0


class Events:
    """Gives each reader the latest event; the first reader that finds it older than `INTERVAL` makes a new one.

    Slow readers miss some events: none are queued in memory.
    """

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._latest: asyncio.Task[bytes] | None = None
        self._next_at = 0.0
        self._closed = asyncio.Event()
        self._failed = RepeatedLog(logger)
        # The tasks that read.
        self.readers: set[asyncio.Task[Any]] = set()

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield the latest event, then each new one; end when the port is closed."""
        reader = cast("asyncio.Task[Any]", asyncio.current_task())
        self.readers.add(reader)
        read: asyncio.Task[bytes] | None = None
        try:
            while not self._closed.is_set():
                if self._latest is None or time.monotonic() >= self._next_at:
                    self._next_at = time.monotonic() + INTERVAL
                    self._latest = asyncio.create_task(self._event())
                # The loop's timers may come a little early.
                if self._latest is not read:
                    read = self._latest
                    # Other readers may be waiting for it too.
                    yield await asyncio.shield(read)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), self._next_at - time.monotonic())
        finally:
            self.readers.discard(reader)

    async def _event(self) -> bytes:
        try:
            return await self._make()
        except Exception as error:  # noqa: BLE001 - it is logged, and the next attempt may succeed
            self._failed.log(logging.ERROR, "cannot update the operators' page", exc_info=error)
            return b""

    async def close(self, limit: float) -> None:
        """End all readers' streams, and wait for the readers, at most ``limit`` seconds."""
        self._closed.set()
        if self.readers:
            await asyncio.wait(self.readers, timeout=limit)
