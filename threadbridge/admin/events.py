"""Server-sent events: one a second, made once for all readers, and only while there are any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# Seconds between events.
INTERVAL = 1.0


class Events:
    """Makes an event every `INTERVAL` seconds as long as there are readers.

    Each reader gets the latest event: slow readers miss some, and none are queued in memory.

    :param make: makes one event, in the format of server-sent events.
    """

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._latest = b""
        self._made = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._failed = RepeatedLog(logger)
        self.readers = 0

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield the latest event, then each new one; end when the port is closed."""
        self.readers += 1
        try:
            if self._task is None:
                self._latest = b""
                self._task = asyncio.create_task(self._tick())
            elif self._latest:
                yield self._latest
            while True:
                await self._made.wait()
                if self._closed:
                    return
                yield self._latest
        finally:
            self.readers -= 1
            if not self.readers:
                self._end()

    async def _tick(self) -> None:
        while True:
            try:
                self._latest = await self._make()
            except Exception as error:  # noqa: BLE001 - it is logged, and the next attempt may succeed
                self._failed.log(logging.ERROR, "cannot update the operators' page", exc_info=error)
            self._wake()
            await asyncio.sleep(INTERVAL)

    def _wake(self) -> None:
        made, self._made = self._made, asyncio.Event()
        made.set()

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        """End all readers' streams."""
        self._closed = True
        self._end()
        self._wake()
