"""Ten times as many requests as a server can answer, at a steady pace, whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import deque

from benchmarks.hazards import THREADS
from benchmarks.hazards.clients import head
from benchmarks.hazards.measures import Figures
from benchmarks.hazards.subject import Subject

QUERY_SECONDS = 0.1
CAPACITY = THREADS / QUERY_SECONDS
TIMES = 10
# It is counted from when the queue has become full.
WARM_UP = 1.0
COUNTED = 3.0
REQUEST = head(f"/query?seconds={QUERY_SECONDS}")


class Load:
    """Sends requests on connections that are kept, as a proxy does; takes down when each was answered, and how."""

    def __init__(self, port: int) -> None:
        # When it was answered, after how long, with which status.
        self.answers: list[tuple[float, float, int]] = []
        self._port = port
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def run(self, seconds: float) -> None:
        """Send for so long, then leave."""
        began = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        sent = 0
        while (elapsed := time.monotonic() - began) < seconds:
            for _ in range(int(elapsed * CAPACITY * TIMES) - sent):
                task = asyncio.create_task(self._request())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, writer in self._idle:
            writer.close()

    async def _request(self) -> None:
        began = time.monotonic()
        # A kept connection may have been closed by the server; a new one that fails counts as no answer.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while self._idle:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await self._ask(began, *self._idle.pop())
                    return
            await self._ask(began, *await asyncio.open_connection("127.0.0.1", self._port))

    async def _ask(self, began: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep = False
        try:
            writer.write(REQUEST)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            keep = fields.get("connection") != "close" and "content-length" in fields
            if keep:
                await reader.readexactly(int(fields["content-length"]))
            now = time.monotonic()
            self.answers.append((now, now - began, int(lines[0].split()[1])))
        finally:
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()


def overload(subject: Subject) -> Figures:
    """Ten times the requests that the database connections allow, each a query of 0.1 s, for four seconds."""
    load = Load(subject.port)
    began = time.monotonic()
    asyncio.run(load.run(WARM_UP + COUNTED))
    counted = [answer for answer in load.answers if WARM_UP < answer[0] - began <= WARM_UP + COUNTED]
    served = sum(status == 200 for _, _, status in counted)
    refusals = [took for _, took, status in counted if status == 503]
    return {
        "of capacity": served / (CAPACITY * COUNTED),
        "refusal": statistics.median(refusals) if refusals else "refuses none",
    }
